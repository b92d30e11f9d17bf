"""Batches of a sampler on the devices: held there as uint8, or streamed by Grain.

Both give the same batches in the same order from any step on, so a loader has no state to save.
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
from jaxattn.errors import unknown
from jaxattn.runtime import devices

LOADERS = ("auto", "in_memory", "grain")

#: ``auto`` keeps the images on the device up to this share of its memory, or on a CPU, whose size
#: is not known, up to this many bytes.
MEMORY_SHARE = 0.3
MEMORY_BYTES = 1 << 30

#: Threads that decode streamed images; more would wait for Python's lock.
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
        """Reads nothing yet.

        Args:
            dataset: Its records are of ``image_size``.
            image_size: Height and width of all images, one length or two.
            config: ``config.loader``: name (one of ``LOADERS``) and workers (processes that decode
                streamed images; 0 for threads of this one).
            mesh: The devices.
            masks: Which of `dataset.MASKS` to load with the images; '' for none.

        Raises:
            InputError: Unknown loader or masks.
        """
        if config.name not in LOADERS:
            raise unknown("loader.name", config.name, LOADERS)
        if masks and masks not in MASKS:
            raise unknown("masks", masks, MASKS)
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

    def training(self, sampler: Sampler, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps ``first`` to ``last - 1`` of a sampler."""
        local = sampler.batch_size // jax.process_count()
        return self._batches(sampler, local, sampler.batch_size, first, last)

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
        batches: Iterator[dict[str, np.ndarray]]
        if self.data:
            batches = (_columns(dataset, masks, slots[step]) for step in range(first, last))
        else:
            batches = self._stream(_Batches(dataset, self._shape, masks, slots, last), first)
        return _prefetch(devices.put_batch(self._mesh, batch) for batch in batches)

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
        return _columns(self._dataset, self._masks, rows) | arrays


def _columns(dataset: Dataset, masks: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What a batch holds beside pixels."""
    columns = {"row": rows, "label": dataset.labels[rows]}
    if masks:
        has_mask = dataset.table.get(f"has_{masks}", np.zeros(len(dataset), np.bool_))
        columns["has_mask"] = has_mask[rows]
    return columns


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
    return MEMORY_SHARE * stats["bytes_limit"] if stats else float(MEMORY_BYTES)


def _prefetch(batches: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """Keeps the transfer of the next batches under way while one is in use."""
    queue: collections.deque[Batch] = collections.deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) > count:
            yield queue.popleft()
    yield from queue
