"""Data sets derived from another one: a selection of its images, in any order, turned, mirrored."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxattn.data.dataset import Dataset, Example

#: Exact moves of an image or a mask, by name.
MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda array: array,
    "clockwise": lambda array: np.rot90(array, -1),
    "counterclockwise": lambda array: np.rot90(array),
    "half_turn": lambda array: np.rot90(array, 2),
    "top_bottom": np.flipud,
    "left_right": np.fliplr,
}


@dataclasses.dataclass(frozen=True, eq=False)
class View(Sequence[Example]):
    """Records of another sequence, selected and moved when they are read.

    Attributes:
        records: The other sequence.
        rows: Its record that each one shows.
        moves: The move of each, a key of ``MOVES``; empty if none moves.
    """

    records: Sequence[Any]
    rows: Int[np.ndarray, " n"]
    moves: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def decoding(self, fields: Collection[str]) -> "View":
        """The same, decoding only these masks; see `Dataset.decoding`."""
        decoding = getattr(self.records, "decoding", None)
        return dataclasses.replace(self, records=decoding(fields)) if decoding else self

    def __getitem__(self, index):
        i = range(len(self))[index]
        return self.moved(self.records[self.rows[i]], i)

    def moved(self, example: Any, index: int) -> Any:
        """Record ``index``, given the record of the other sequence that it shows."""
        if not self.moves:
            return example
        move = MOVES[self.moves[index]]
        return {name: np.ascontiguousarray(move(array)) for name, array in example.items()}


def copies(records: Sequence[Any]) -> list[list[int]]:
    """All positions of a sequence, grouped by the record of the other sequence they show."""
    sources = records.rows if isinstance(records, View) else np.arange(len(records))
    order = np.argsort(sources, kind="stable")
    firsts = np.flatnonzero(np.diff(sources[order])) + 1
    return [each.tolist() for each in np.split(order, firsts)]


def read(records: Sequence[Any], together: Sequence[int]) -> Iterator[Any]:
    """The records of one group of `copies`, decoding only one."""
    if not isinstance(records, View):
        yield from (records[i] for i in together)
        return
    source = records.records[records.rows[together[0]]]
    yield from (records.moved(source, i) for i in together)


def take(dataset: Dataset, rows: Int[np.ndarray, " n"], **columns: np.ndarray) -> Dataset:
    """The data set of some rows; columns given replace the table's."""
    table = {name: column[rows] for name, column in dataset.table.items()} | columns
    return dataclasses.replace(dataset, table=table, records=View(dataset.records, rows))
