"""transformers' Trainer and accelerate give each row of a stream to one rank, and resume it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.numbered import build_sample, write_build
from tests.trainers import ROOT

pytest.importorskip("torch", reason="needs the extra: pip install '.[train]'")
pytest.importorskip("transformers")

pytestmark = pytest.mark.train

ROWS = 29
TRAINED = """
import json, os, sys
import torch
from transformers import Trainer, TrainingArguments
from pipeline.errors import ConfigurationError
from pipeline.training.dataset import ShardDataset
from pipeline.training.stream import ShardStream

FOLDER, HOME, RANK = sys.argv[1], sys.argv[2], os.environ.get("RANK", "0")
WORLD = int(os.environ.get("WORLD_SIZE", "1"))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, numbers):
        self.seen.append(numbers.tolist())
        return {"loss": self.weight * numbers.sum()}

def collate(rows):
    return {"numbers": torch.tensor([row["input_ids"][0] for row in rows])}

def train(data, *, workers=0, epochs=2, resume=False, name="none"):
    model = Model()
    arguments = TrainingArguments(
        f"{HOME}/{name}", per_device_train_batch_size=3, num_train_epochs=epochs, use_cpu=True,
        report_to=[], remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
        accelerator_config={"dispatch_batches": False}, dataloader_num_workers=workers, seed=1,
        save_strategy="steps" if name != "none" else "no", save_steps=2,
        ddp_backend="gloo" if WORLD > 1 else None,
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
    path = f"{HOME}/{name}/checkpoint-2"
    trainer.train(resume_from_checkpoint=path if resume else None)
    return model.seen

def stream(**split):
    return ShardStream(FOLDER, batch_size=3 * WORLD, window=2, **(split or {"rank": 0, "world": 1}))

if __name__ == "__main__":
    found = {"stream": train(stream(), name="a"), "workers": train(stream(), workers=2)}
    found["stream resumed"] = train(stream(), name="a", resume=True)
    found["map"] = train(ShardDataset(FOLDER), name="b")
    found["map resumed"] = train(ShardDataset(FOLDER), name="b", resume=True)
    try:
        ShardStream(FOLDER).split
        found["refused"] = ""
    except ConfigurationError as error:
        found["refused"] = str(error)
    if WORLD > 1:  # one's own loader over each rank's part
        whole = ShardStream(FOLDER, rank=int(RANK), world=WORLD, window=2, even="none")
        found["own"] = [int(row["input_ids"][0]) for row in whole]
        sys.modules.pop("accelerate.state")
        found["distributed"] = list(ShardStream(FOLDER).split)
        torch.distributed.destroy_process_group()
    open(f"{HOME}/{RANK}.json", "w").write(json.dumps(found))
"""


def run_ranks(world: int, folder: Path, home: Path) -> list[dict[str, Any]]:
    """What each rank's Trainer trained."""
    home.mkdir()
    script = home / "train.py"
    script.write_text(TRAINED, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    known = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(home / "cache")}
    known |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(world):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world} if world > 1 else {}
        env = {**os.environ, **known, **{name: str(value) for name, value in told.items()}}
        command = [sys.executable, str(script), str(folder), str(home)]
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    told_all = [process.communicate(timeout=200)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(told_all)
    return [json.loads((home / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trainer")
    return write_build(home / "build", build_sample(home / "sample"), [[5, 3], [4], [8, 9]])


def order_of(folder: Path, epoch: int) -> list[int]:
    from pipeline.training.stream import ShardStream

    stream = ShardStream(folder, window=2)
    stream.set_epoch(epoch)
    return [int(row["input_ids"][0]) for row in stream]


def test_one_process_trains_the_streams_order_and_resumes(folder: Path, tmp_path: Path) -> None:
    (found,) = run_ranks(1, folder, tmp_path / "one")
    orders = [order_of(folder, epoch) for epoch in (0, 1)]
    expected = [order[i : i + 3] for order in orders for i in range(0, ROWS, 3)]
    assert found["stream"] == found["workers"] == expected
    assert found["stream resumed"] == expected[2:]
    assert found["map resumed"] == found["map"][2:]
    for epoch in (found["map"][:10], found["map"][10:]):
        assert sorted(number for batch in epoch for number in batch) == list(range(ROWS))
    assert found["refused"] == ""  # one process splits nothing


def test_two_ranks_share_a_stream_and_resume(folder: Path, tmp_path: Path) -> None:
    ranks = run_ranks(2, folder, tmp_path / "two")
    steps = []
    for epoch in (0, 1):
        order = order_of(folder, epoch)
        order += order[:1]  # accelerate fills the last step with the first rows
        steps += [order[i : i + 6] for i in range(0, ROWS, 6)]
    for name in ("stream", "workers"):
        assert [a + b for a, b in zip(*(found[name] for found in ranks), strict=True)] == steps
    for found in ranks:
        assert found["stream resumed"] == found["stream"][2:]
        assert found["map resumed"] == found["map"][2:]
        assert "split a stream themselves" in found["refused"]
        assert "pass rank=0, world=1" in found["refused"]
    assert sorted(ranks[0]["own"] + ranks[1]["own"]) == list(range(ROWS))
    assert [found["distributed"] for found in ranks] == [[0, 2], [1, 2]]
