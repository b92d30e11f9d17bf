"""Batches on the devices: images held there as uint8, or streamed by Grain.

Both give the same batches in the same order from any step on, so no loader state needs saving.
"""

import collections
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxattn.data import derived, packed
from jaxattn.data.dataset import MASKS, Dataset, height_width
from jaxattn.data.metadata import Vocabulary
from jaxattn.data.samplers import Sampler
from jaxattn.errors import unknown
from jaxattn.runtime import devices

LOADERS = ("in_memory", "grain", "auto")

#: ``auto`` holds the images on the device up to this share of its memory, or up to this many bytes
#: if the device does not report its memory (a CPU).
IN_MEMORY_SHARE = 0.3
IN_MEMORY_BYTES = 1 << 30

#: Most threads that decode streamed images; more would wait for Python's lock.
MAX_THREADS = 16

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
        vocabulary: Vocabulary | None = None,
    ):
        """Reads nothing yet.

        Args:
            dataset: Its records have ``image_size``.
            image_size: Height and width of all images, one number or a pair.
            config: ``config.loader``: name, one of ``LOADERS``, and workers, the processes that
                decode streamed images; 0 for threads of this process.
            mesh: The devices.
            masks: Which of `dataset.MASKS` comes with the images; '' for none, which saves decoding
                them.
            vocabulary: Of the metadata that come with the images; None for none.

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
        self._columns = {"label": dataset.labels}
        if masks:
            none = np.zeros(len(dataset), np.bool_)
            self._columns["has_mask"] = dataset.table.get(f"has_{self._masks}", none)
        if vocabulary:
            self._columns["metadata"] = vocabulary.encode(dataset.table, len(dataset))

    @functools.cached_property
    def data(self) -> Mapping[str, jax.Array | packed.Packed]:
        """What the steps read in addition to each batch.

        Returns:
            ``{"image": uint8 (N, H, W, 3)}`` on every device, with ``"mask": uint8 (N, H, W)`` in
            {0, 1} if masks were asked for; ``{}`` if images are streamed. Masks are 0 for images
            without one; the bool ``has_mask`` of each batch tells which. On a TPU the arrays are
            `packed <jaxattn.data.packed.Packed>`.
        """
        channels = 4 if self._masks else 3
        size = len(self._dataset) * self._shape[0] * self._shape[1] * channels
        name = self._config.name
        if name == "grain" or (name == "auto" and size > _in_memory_limit()):
            return {}
        arrays: dict[str, Any] = decode_all(self._dataset, self._shape, self._masks)
        if self._mesh.devices.flat[0].platform in packed.PLATFORMS:
            arrays = {name: packed.pack(array) for name, array in arrays.items()}
        return devices.put_replicated(self._mesh, arrays)

    def training(self, sampler: Sampler, first: int, last: int) -> Iterator[Batch]:
        """The sampler's batches of the steps ``first`` to ``last - 1``."""
        return self._batches(sampler, sampler.batch_size, first, last)

    def evaluation(self, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """All rows in order; the last batch is padded with its last row."""
        steps = -(-len(rows) // batch_size)
        padded = np.pad(rows, (0, steps * batch_size - len(rows)), mode="edge")
        return self._batches(padded, batch_size, 0, steps)

    def _batches(
        self, rows: Sampler | np.ndarray, batch_size: int, first: int, last: int
    ) -> Iterator[Batch]:
        local_rows = _LocalRows(rows, batch_size)
        batches: Iterable[dict[str, np.ndarray]]
        if self.data:
            batches = (_describe(self._columns, local_rows[step]) for step in range(first, last))
        else:
            source = _DecodedBatches(
                self._dataset, self._shape, self._masks, self._columns, local_rows, last
            )
            batches = self._stream(source, first)
        return _prefetch(devices.put_batch(self._mesh, batch) for batch in batches)

    def _stream(self, source: "_DecodedBatches", first: int) -> Iterator[dict[str, np.ndarray]]:
        import grain  # imports slowly

        # Twice the cores, as some wait for the disk. All that is decoded ahead is in memory.
        workers = self._config.workers
        threads = 0 if workers else min(MAX_THREADS, 2 * (os.cpu_count() or 1))
        stream = grain.MapDataset.source(source)[first:].to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags; a notebook has not parsed any
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers)
            stream = stream.mp_prefetch(options, worker_init_fn=_end_with_parent)
        return iter(stream)


class _LocalRows:
    """The rows of each batch that this host loads, int32."""

    def __init__(self, rows: Sampler | np.ndarray, batch_size: int):
        self._rows, self._batch_size = rows, batch_size
        count = batch_size // jax.process_count()
        self._slots = range(jax.process_index() * count, (jax.process_index() + 1) * count)

    def __getitem__(self, step: int) -> np.ndarray:
        first = step * self._batch_size
        return np.array([self._rows[first + slot] for slot in self._slots], dtype=np.int32)


class _DecodedBatches:
    """This host's part of each batch, decoded: the random-access source that Grain reads.

    It reads whole batches rather than images, so that no image is copied and Grain's overhead per
    element, a quarter of decoding a small image, is paid once per batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        shape: tuple[int, int],
        masks: str,
        columns: Mapping[str, np.ndarray],
        local_rows: _LocalRows,
        steps: int,
    ):
        self._dataset, self._shape, self._masks = dataset, shape, masks
        self._columns = columns
        self._local_rows, self._steps = local_rows, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rows = self._local_rows[step]
        arrays = _allocate(len(rows), self._shape, self._masks)
        for place, row in enumerate(rows.tolist()):
            _fill(arrays, place, self._dataset.records[row], self._masks)
        return _describe(self._columns, rows) | arrays


def _describe(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows and what is known of them, by column."""
    return {"row": rows} | {name: column[rows] for name, column in columns.items()}


def _allocate(count: int, shape: tuple[int, int], masks: str) -> dict[str, np.ndarray]:
    """Arrays for ``count`` images and, with masks, their masks."""
    arrays = {"image": np.empty((count, *shape, 3), np.uint8)}
    if masks:
        arrays["mask"] = np.empty((count, *shape), np.uint8)
    return arrays


def _fill(
    arrays: Mapping[str, np.ndarray], place: int, example: Mapping[str, Any], masks: str
) -> None:
    """Copies an example into arrays of `_allocate`."""
    arrays["image"][place] = example["image"]
    if masks:
        arrays["mask"][place] = example[masks] > 0 if masks in example else 0


def decode_all(
    dataset: Dataset, image_size: int | tuple[int, int], masks: str = ""
) -> dict[str, np.ndarray]:
    """Decodes all images of a data set; an image with copies is decoded once.

    Args:
        dataset: The data set.
        image_size: Height and width of its images, one number or a pair.
        masks: Field of the masks to decode too, a value of `dataset.MASKS`; '' for none.

    Returns:
        ``image`` uint8 ``(N, H, W, 3)`` and, with masks, ``mask`` uint8 ``(N, H, W)`` in {0, 1}.
    """
    arrays = _allocate(len(dataset), height_width(image_size), masks)

    def decode(rows: list[int]) -> None:
        for row, example in zip(rows, derived.read(dataset.records, rows), strict=True):
            _fill(arrays, row, example, masks)

    with ThreadPoolExecutor() as pool:
        collections.deque(pool.map(decode, derived.copies(dataset.records)), maxlen=0)
    return arrays


def _end_with_parent(worker: int, workers: int) -> None:
    """Makes a worker process end when the program does, however that ends."""
    del worker, workers
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _in_memory_limit() -> float:
    """Bytes of images that ``auto`` holds on the device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return IN_MEMORY_SHARE * stats["bytes_limit"] if stats else float(IN_MEMORY_BYTES)


def _prefetch(batches: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """Keeps the transfer of the next batches under way while one is in use."""
    queue: collections.deque[Batch] = collections.deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) > count:
            yield queue.popleft()
    yield from queue
