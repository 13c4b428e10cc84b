"""A finished build as a stream: shuffled, dealt to ranks and workers, resumed where it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import ConfigurationError
from pipeline.training.block import TOKENS, Row
from pipeline.training.blocks import find_blocks
from pipeline.training.dataset import require_columns
from pipeline.training.order import make_order
from pipeline.training.passage import pass_over
from pipeline.training.share import Share, even_out

Even = Literal["drop", "pad", "none"]
_EVEN = ("drop", "pad", "none")


class ShardStream(IterableDataset[Row]):
    """Each row once an epoch, over all ranks and all workers of the DataLoader; no copy on disk.

    **Order.** A function of build, *seed* and epoch alone, the same for any number of ranks and
    workers. Row groups (a million tokens) are shuffled, and the rows of *window* of them at a time:
    a perfect shuffle up to *window* million tokens; beyond, rows that follow each other come from
    *window* row groups drawn from the whole build. Parquet row groups are decoded as their window
    comes near, each by each worker, which keeps its own rows: up to 26 MB for each of *window*,
    over all ranks and workers. Arrow shards are mapped. Call ``set_epoch`` before each epoch.

    **Ranks.** *rank* and *world* are those of torch.distributed, or of the variables RANK and
    WORLD_SIZE; where several ranks must see the same rows (tensor or context parallelism) pass
    those of the data-parallel group. Rank r gets places r, r + world, ... of the order. Ranks with
    more batches than others wait for ever, so *even* says what to do with a rest: ``"drop"`` leaves
    up to world - 1 rows out of the epoch, others each time; ``"pad"`` gives the first ones twice;
    ``"none"`` gives each row once, to some ranks one more.

    **Workers.** With *batch_size*, that of the DataLoader, batches are the same for any number of
    workers, and what was taken is a beginning of the order: needed to resume with workers.

    **accelerate and Trainer** split a stream themselves: there pass ``rank=0, world=1`` and, as
    *batch_size*, rows a step of all ranks; set ``dispatch_batches`` to False (WeightedTrainer
    does), or rank 0 reads for all and cuts padded batches anew. They resume by reading again.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        batch_size: int | None = None,
        columns: Sequence[str] = tuple(TOKENS),
        seed: int = 0,
        shuffle: bool = True,
        window: int = 32,
        rank: int | None = None,
        world: int | None = None,
        even: Even = "drop",
    ) -> None:
        self.columns = require_columns(columns)
        for name, value, least in (
            ("seed", seed, 0),
            ("window", window, 1),
            ("batch_size", batch_size, 1),
        ):
            if value is not None and value < least:
                raise ConfigurationError(f"{name}: is {value}; give {least} or more")
        if even not in _EVEN:
            raise ConfigurationError(f"even: is {even!r}; give one of {', '.join(_EVEN)}")
        if (rank is None) != (world is None) or not 0 <= (rank or 0) < (world or 1):
            raise ConfigurationError(
                f"rank: is {rank} of world {world}; give both, counted from 0, or neither"
            )
        self.batch_size, self.even = batch_size, even
        self._blocks = find_blocks(Path(folder))
        self._order: dict[str, Any] = {
            "fingerprint": self._blocks.fingerprint,
            "seed": seed,
            "shuffle": shuffle,
            "window": window,
        }
        self._split = None if rank is None or world is None else (rank, world)
        # Shared with workers that outlive an epoch: they would never hear of the next one.
        self._place = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._skipped = self._given = 0  # rows of this very share, since the place
        self._begun = False  # whether this very object gave out rows, in this process

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group to ask.
        return {**self.__dict__, "_split": self.split}

    @property
    def split(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        if self._split is not None:
            return self._split
        split = _find_split()
        accelerate = sys.modules.get("accelerate.state")
        if split[1] > 1 and accelerate and accelerate.PartialState._shared_state:
            raise ConfigurationError(
                "rank: accelerate is at work here, whose loaders (Trainer's too) split a stream "
                "themselves, and would split this one twice; pass rank=0, world=1, or for a loader "
                f"of your own rank={split[0]}, world={split[1]}"
            )
        return split

    def __len__(self) -> int:
        """Rows that this rank gets in an epoch from its beginning."""
        rank, world = self.split
        return len(range(rank, even_out(self._blocks.rows, world, self.even), world))

    def __iter__(self) -> Iterator[Row]:
        epoch, start = self._place.tolist()
        rows, world = self._blocks.rows, self.split[1]
        key = (self._order["seed"], epoch) if self._order["shuffle"] else ()
        order = make_order(self._blocks.firsts, window=self._order["window"], key=key)
        passage = pass_over(
            self._blocks,
            order,
            self._share(),
            start=start,
            stop=start + even_out(max(0, rows - start), world, self.even),
            given=self._skipped,
        )
        self._given, self._begun = self._skipped, True
        window = next(passage, None)
        while window is not None:
            following = next(passage, None)
            for row in window.rows(self.columns, following):
                self._given += 1
                yield row
            window = following

    def set_epoch(self, epoch: int) -> None:
        """Begins that epoch, in an order of its own; a place in it that was resumed stays."""
        if epoch != self._place[0]:
            self.resume(epoch=epoch)

    def resume(self, *, epoch: int, consumed: int = 0) -> None:
        """Goes on in *epoch* after *consumed* rows of all ranks together: steps x rows a step.

        The number of ranks, of workers and of rows in a batch may be another than before.
        """
        if epoch < 0 or consumed < 0:
            raise ConfigurationError(f"epoch: {epoch}, consumed {consumed}; give 0 or more")
        self._place.copy_(torch.tensor([epoch, consumed]))
        self._skipped = self._given = 0

    def state_dict(self, *, batches: int | None = None) -> dict[str, Any]:
        """Where this epoch is after the trainer took *batches* of this rank's loader.

        Count those since ``set_epoch`` or ``load_state_dict``. Without: what this very object gave
        out, which is right for a DataLoader without workers, and in each worker of torchdata's
        StatefulDataLoader, but not for a DataLoader with workers: they read ahead, elsewhere.
        """
        epoch, start = self._place.tolist()
        share, given = self._share(), self._given
        if batches is None and not self._begun and get_worker_info() is None:
            raise ConfigurationError(
                "batches: is not told, and no row was taken from this very object: workers of a "
                "DataLoader read it, so pass how many batches the trainer took, 0 at the beginning"
            )
        if batches is not None:
            if self.batch_size is None:
                raise ConfigurationError("batch_size: is not told; give that of the DataLoader")
            start, given = start + batches * self.batch_size * share.world, 0
        elif share.workers == 1:
            start, given = start + given * share.world, 0
        split = [share.world, share.workers, share.batch]
        return {**self._order, "epoch": epoch, "consumed": start, "given": given, "split": split}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was, on any number of ranks.

        ConfigurationError where the order is another one.
        """
        for name, value in self._order.items():
            if state[name] != value:
                raise ConfigurationError(
                    f"{name}: was {state[name]} when the state was saved, is {value}; give the same"
                )
        share = self._share()
        split = [share.world, share.workers, share.batch]
        if state["given"] and state["split"] != split:
            raise ConfigurationError(
                f"state: is of a worker among {state['split']} (ranks, workers, batch size), not "
                f"{split}; give the same, or resume(epoch=, consumed=)"
            )
        self.resume(epoch=state["epoch"], consumed=state["consumed"])
        self._skipped = self._given = state["given"]

    def _share(self) -> Share:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return Share(*self.split, worker, workers, self.batch_size or 1)


def _find_split() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    alone = "RANK" not in os.environ and told[1] != "1"  # each process would be the first one
    if alone or not all(map(str.isdecimal, told)) or int(told[0]) >= int(told[1]):
        raise ConfigurationError(
            f"RANK: is {os.environ.get('RANK')!r}, WORLD_SIZE {told[1]!r} in the environment; set "
            "both, ranks counted from 0, as torchrun does, or pass rank and world"
        )
    return int(told[0]), int(told[1])
