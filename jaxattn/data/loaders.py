"""From a plan to batches on the devices: held there as uint8, or streamed by Grain.

Both give the same batches in the same order from any step on, so nothing of a loader needs saving.
"""

import collections
import functools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxattn.data import derived
from jaxattn.data.dataset import MASKS, Dataset, height_width
from jaxattn.data.samplers import Sampler
from jaxattn.errors import InputError, suggestion
from jaxattn.runtime import devices

LOADERS = ("auto", "resident", "grain")

#: The share of a device's memory, and the bytes where it does not tell (a CPU), up to which
#: ``auto`` keeps the images there.
RESIDENT_SHARE = 0.3
RESIDENT_BYTES = 1 << 30

#: The most threads that decode streamed images: more of them wait for Python's lock.
MOST_THREADS = 16

Batch = dict[str, jax.Array]


class Loader:
    """Batches of one data set at one image size."""

    def __init__(
        self,
        dataset: Dataset,
        image_size: int | tuple[int, int],
        config: ConfigDict,
        mesh: Mesh,
        masks: str = "",
    ):
        """Nothing is read yet.

        Args:
            dataset: Its records are of ``image_size``.
            image_size: Height and width of all images, one length or two.
            config: ``config.loader``: name (one of ``LOADERS``) and workers (processes that decode
                streamed images; 0 for threads of this one).
            mesh: The devices.
            masks: Which of `dataset.MASKS` comes with the images; '' for none, which saves the time
                to decode them.

        Raises:
            InputError: Unknown loader or masks.
        """
        if config.name not in LOADERS:
            raise InputError(
                f"loader.name: {config.name!r} given{suggestion(config.name, LOADERS)}"
            )
        if masks and masks not in MASKS:
            raise InputError(f"masks: {masks!r} given{suggestion(masks, MASKS)}")
        self._masks = MASKS.get(masks, "")
        self._dataset, self._config = dataset.decoding((self._masks,)), config
        self._shape = height_width(image_size)
        self._mesh = mesh

    @functools.cached_property
    def data(self) -> Mapping[str, jax.Array]:
        """What the steps read beside each batch.

        Returns:
            ``{"image": uint8 (N, H, W, 3)}`` on every device, with ``"mask": uint8 (N, H, W)`` in
            {0, 1} where masks are wanted, or ``{}`` where images are streamed. Each batch then
            says in ``has_mask`` which images have one; the others' are 0.
        """
        channels = 4 if self._masks else 3
        size = len(self._dataset) * self._shape[0] * self._shape[1] * channels
        name = self._config.name
        if name == "grain" or (name == "auto" and size > _room()):
            return {}
        arrays = decode_all(self._dataset, self._shape, self._masks)
        return devices.put_replicated(self._mesh, arrays)

    def training(self, plan: Sampler, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps ``first`` to ``last - 1`` of a plan."""
        local = plan.batch_size // jax.process_count()
        return self._batches(plan, local, plan.batch_size, first, last)

    def evaluation(self, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """All rows in order, the last batch filled up with its last row."""
        steps = -(-len(rows) // batch_size)
        padded = np.pad(rows, (0, steps * batch_size - len(rows)), mode="edge")
        local = batch_size // jax.process_count()
        return self._batches(padded, local, batch_size, 0, steps)

    def _batches(
        self, rows: "Sampler | np.ndarray", local: int, size: int, first: int, last: int
    ) -> Iterator[Batch]:
        dataset, masks, slots = self._dataset, self._masks, _Slots(rows, local, size)
        there: Iterator[dict[str, np.ndarray]]
        if self.data:
            there = (_facts(dataset, masks, slots[step]) for step in range(first, last))
        else:
            there = self._stream(_Batches(dataset, self._shape, masks, slots, last), first)
        return _ahead(devices.put_batch(self._mesh, batch) for batch in there)

    def _stream(self, batches: "_Batches", first: int) -> Iterator[dict[str, np.ndarray]]:
        # Twice the cores, for what waits for the disk. All that is decoded ahead is in memory.
        workers = self._config.workers
        threads = 0 if workers else min(MOST_THREADS, 2 * (os.cpu_count() or 1))
        stream = grain.MapDataset.source(batches)[first:].to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags, which a notebook has not parsed
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iter(stream)


class _Slots:
    """The rows of this host's slots of each batch."""

    def __init__(self, rows: "Sampler | np.ndarray", local: int, size: int):
        self._rows, self._size = rows, size
        self._own = range(jax.process_index() * local, (jax.process_index() + 1) * local)

    def __getitem__(self, step: int) -> np.ndarray:
        return np.array([self._rows[step * self._size + i] for i in self._own], dtype=np.int32)


class _Batches:
    """This host's part of each batch, decoded: the random access that Grain reads from.

    Whole batches rather than images: they are written where they stay, and what Grain does for
    each of its elements costs a quarter of decoding a small image.
    """

    def __init__(
        self, dataset: Dataset, shape: tuple[int, int], masks: str, slots: _Slots, last: int
    ):
        self._dataset, self._shape, self._masks = dataset, shape, masks
        self._slots, self._last = slots, last

    def __len__(self) -> int:
        return self._last

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rows = self._slots[step]
        arrays = _empty(len(rows), self._shape, self._masks)
        for place, row in enumerate(rows.tolist()):
            _put(arrays, place, self._dataset.records[row], self._masks)
        return _facts(self._dataset, self._masks, rows) | arrays


def _facts(dataset: Dataset, masks: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of some rows without their pixels."""
    facts = {"row": rows, "label": dataset.labels[rows]}
    if masks:
        there = dataset.table.get(f"has_{masks}", np.zeros(len(dataset), np.bool_))
        facts["has_mask"] = there[rows]
    return facts


def _empty(count: int, shape: tuple[int, int], masks: str) -> dict[str, np.ndarray]:
    arrays = {"image": np.empty((count, *shape, 3), np.uint8)}
    if masks:
        arrays["mask"] = np.empty((count, *shape), np.uint8)
    return arrays


def _put(
    arrays: Mapping[str, np.ndarray], place: int, example: Mapping[str, Any], masks: str
) -> None:
    arrays["image"][place] = example["image"]
    if masks:
        arrays["mask"][place] = example[masks] > 0 if masks in example else 0


def decode_all(
    dataset: Dataset, image_size: int | tuple[int, int], masks: str = ""
) -> dict[str, np.ndarray]:
    """All images of a data set; of copies, the image that they are copies of is decoded once.

    Args:
        dataset: The data set.
        image_size: Height and width of its images, one length or two.
        masks: Field of the masks to decode too, see `dataset.MASKS`; '' for none.

    Returns:
        ``image`` uint8 ``(N, H, W, 3)`` and, where it is asked for, ``mask`` uint8 ``(N, H, W)`` in
        {0, 1}.
    """
    arrays = _empty(len(dataset), height_width(image_size), masks)

    def decode(rows: list[int]) -> None:
        for row, example in zip(rows, derived.read(dataset.records, rows), strict=True):
            _put(arrays, row, example, masks)

    with ThreadPoolExecutor() as pool:
        collections.deque(pool.map(decode, derived.copies(dataset.records)), maxlen=0)
    return arrays


def _room() -> float:
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return RESIDENT_SHARE * stats["bytes_limit"] if stats else float(RESIDENT_BYTES)


def _ahead(batches: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """Keeps the transfer of the next batches under way while one is in use."""
    queue: collections.deque[Batch] = collections.deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) > count:
            yield queue.popleft()
    yield from queue
