"""What MosaicML's StreamingDataset makes of an export is the build, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exporting import export_dataset
from pipeline.targets.chunk import Chunk
from pipeline.targets.mosaic import _samples
from tests.exports import once, rows_of, weighed  # noqa: F401 - a fixture
from tests.trainers import run_with_trainers

pytestmark = pytest.mark.train

_READ = """
    import sys
    from tests.stand_ins import stand_in

    # Clouds, images and codecs, none of which local MDS takes.
    stand_in("boto3", "botocore", "google", "oci", "paramiko", "azure", "brotli", "snappy", "zstd")
    stand_in("torchvision", "matplotlib", "streaming.vision", "streaming.multimodal")
    stand_in("streaming.text")
    import json
    import numpy as np
    from streaming import StreamingDataset
    from streaming.base.format.mds.encodings import mds_encode

    folder, out, samples, recipe = sys.argv[1:]
    told = {}
    exec(recipe)  # the lines that the export printed: they make rows
    told["recipe"] = len(list(rows))
    for name in ("ordered", "shuffled"):
        dataset = StreamingDataset(local=folder, shuffle=name == "shuffled", batch_size=1)
        rows = list(dataset)
        kinds = {f"{key} {v.dtype} {v.ndim}" for row in rows for key, v in row.items()}
        told[name] = {"rows": len(rows), "size": dataset.size, "kinds": sorted(kinds)}
        np.savez(
            f"{out}/{name}.npz",
            **{key: np.concatenate([row[key] for row in rows]) for key in rows[0]},
            lengths=[len(row["input_ids"]) for row in rows],
            seventh=dataset[7]["loss_scale"],
        )
    first, same = 0, []
    for sample in map(bytes.fromhex, open(samples).read().split()):
        length = [1, 255, 256, 65535, 65536][len(same)]  # as made by the test
        row = np.arange(first, first + length, dtype=np.int32)
        data = [
            mds_encode("ndarray:int32", row),
            mds_encode("ndarray:int32", -row),
            mds_encode("ndarray:float32", (row / 7).astype(np.float32)),
        ]
        sizes = np.array([len(d) for d in data], np.uint32).tobytes()
        same.append(sample == sizes + b"".join(data))
        first += length
    print(json.dumps(told | {"same": same}))
"""


@pytest.fixture(scope="module")
def read(weighed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """What their reader says, and of each order the arrays."""

    def make(folder: Path) -> Any:
        recipe = export_dataset(weighed, "mosaic", folder / "mds").recipe
        samples = "\n".join(sample.hex() for sample in _samples(_long_rows()))
        (folder / "samples").write_text(samples)
        words = (folder / "mds", folder, folder / "samples", recipe)
        return run_with_trainers(_READ, *words, needs=("streaming", "catalogue"))

    folder, told = once(tmp_path_factory, "mosaic", make)
    for name in ("ordered", "shuffled"):
        told[name].update(np.load(folder / f"{name}.npz"))
    found: dict[str, Any] = told
    return found


def _long_rows() -> Chunk:
    """Rows as long as where the format's shape numbers change size."""
    lengths = np.array([1, 255, 256, 65_535, 65_536])
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(firsts[-1], dtype=np.int32)
    weights = (ids / 7).astype(np.float32)
    return Chunk(firsts, ids, -ids, weights, np.zeros(len(lengths), bool), 0, 0)


def test_its_reader_gives_every_row_in_order_with_exact_weights(
    weighed: Path,  # noqa: F811
    read: dict[str, Any],
) -> None:
    found, rows = read["ordered"], rows_of(weighed)
    assert found["rows"] == found["size"] == read["recipe"] == len(rows)
    assert found["kinds"] == ["input_ids int32 1", "labels int32 1", "loss_scale float32 1"]
    assert found["lengths"].tolist() == [len(row["ids"]) for row in rows]
    for name, ours in (("input_ids", "ids"), ("labels", "labels"), ("loss_scale", "weights")):
        np.testing.assert_array_equal(found[name], np.concatenate([row[ours] for row in rows]))
    np.testing.assert_array_equal(found["seventh"], rows[7]["weights"])
    assert {0, 0.3, 1, 2.5} <= {round(float(w), 4) for w in np.unique(found["loss_scale"])}


def test_shuffled_it_gives_every_row_once(weighed: Path, read: dict[str, Any]) -> None:  # noqa: F811
    found, rows = read["shuffled"], [row["ids"].tolist() for row in rows_of(weighed)]
    ends = np.cumsum(found["lengths"])[:-1]
    given = [part.tolist() for part in np.split(found["input_ids"], ends)]
    assert given != rows
    assert sorted(given) == sorted(rows)


def test_rows_of_any_length_are_its_own_encoders_bytes(read: dict[str, Any]) -> None:
    assert read["same"] == [True] * 5
