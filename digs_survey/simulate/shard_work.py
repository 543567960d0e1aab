"""What a worker does with the shards of a dataset: compute one, write it whole, mark it done, go on with the next."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from digs_survey.errors import StageError
from digs_survey.store.ledger import Ledger
from digs_survey.store.sharded import recorded_recipe
from digs_survey.store.storage import checksum, rows_of_shard, write_shard

__all__ = ["Made", "ShardWriter"]

Made = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]
"""Arrays of a shard by name, and what its marker keeps besides."""

_one_at_a_time = threading.Lock()
"""A process makes one shard at a time, though a cluster's worker may have several threads: its memory and the seconds
in the markers are those of one shard, and Prospector's model keeps its parameters in itself."""


@dataclass(frozen=True)
class ShardWriter(ABC):
    """What a worker needs to make any shard of a dataset, given its number.

    Attributes
    ----------
    path : Path
        The dataset, laid out by ``recipe``.
    ledger : Path
        Folder of the done-markers.
    recipe : dict
        Everything that decides the dataset's bytes.
    total : int
        Rows of the dataset.
    """

    stage: ClassVar[str]
    """Name for messages."""

    path: Path
    ledger: Path
    recipe: dict[str, Any]
    total: int

    @abstractmethod
    def compute(self, parts: Sequence[slice]) -> Iterator[Made]:
        """Yield the arrays of each of some shards, whose rows are given, in their order."""

    def rows(self, shard: int) -> slice:
        """Return the rows of a shard."""
        return rows_of_shard(shard, self.total, self.recipe["rows_per_shard"])

    def make(self, shards: Sequence[int]) -> None:
        """Compute and write shards one after the other, and mark each done.

        Raises
        ------
        StageError
            Naming the shard that failed; those before it are done.
        """
        made = self.compute([self.rows(shard) for shard in shards])
        for shard in shards:
            try:
                with _one_at_a_time:
                    self._make(shard, made)
            except Exception as error:
                rows = self.rows(shard)
                raise StageError(
                    f"{self.stage}: shard {shard} (rows {rows.start} to {rows.stop - 1}) of {self.path} failed: "
                    f"{error}; finished shards are kept, and the same command goes on from them"
                ) from error

    def _make(self, shard: int, made: Iterator[Made]) -> None:
        ledger, rows = Ledger(self.ledger), self.rows(shard)
        with ledger.attempt(shard) as token:
            started, began = time.process_time(), time.monotonic()
            values, extra = next(made)
            if recorded_recipe(self.path) != self.recipe:
                raise StageError(f"{self.path} was replaced by another run while shard {shard} was computed")
            write_shard(self.path, shard, rows, values)
            ledger.mark(
                shard,
                rows=rows.stop - rows.start,
                checksum=checksum(*values.values()),
                core_s=time.process_time() - started,
                seconds=time.monotonic() - began,
                attempt=token,
                **extra,
            )
