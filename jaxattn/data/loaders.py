"""From a plan to batches on the devices: held there as uint8, or streamed by Grain.

Both give the same batches in the same order from any step on, so nothing of a loader needs saving.
"""

import collections
import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxattn import sharding
from jaxattn.data.dataset import MASKS, Dataset, height_width
from jaxattn.data.plans import Plan
from jaxattn.errors import InputError, suggestion

LOADERS = ("auto", "resident", "grain")

#: The share of a device's memory, and the bytes where it does not tell (a CPU), up to which
#: ``auto`` keeps the images there.
RESIDENT_SHARE = 0.3
RESIDENT_BYTES = 1 << 30

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
        return sharding.put_replicated(self._mesh, arrays)

    def training(self, plan: Plan, first: int, last: int) -> Iterator[Batch]:
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
        self, rows: "Plan | np.ndarray", local: int, size: int, first: int, last: int
    ) -> Iterator[Batch]:
        if self.data:
            batches = (self._rows(rows, local, size, step) for step in range(first, last))
        else:
            examples = _Examples(self._dataset, self._masks, rows, local, size, last)
            batches = self._stream(examples, local, first)
        return _ahead(sharding.put_batch(self._mesh, batch) for batch in batches)

    def _rows(self, rows: "Plan | np.ndarray", local: int, size: int, step: int):
        start = step * size + jax.process_index() * local
        chosen = np.array([rows[start + i] for i in range(local)], dtype=np.int32)
        return _facts(self._dataset, self._masks, chosen)

    def _stream(self, examples: "_Examples", local: int, first: int):
        dataset = grain.MapDataset.source(examples)[first * local :].batch(local)
        batches = dataset.to_iter_dataset(
            grain.ReadOptions(
                num_threads=0 if self._config.workers else 16, prefetch_buffer_size=4 * local
            )
        )
        if self._config.workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags, which a notebook has not parsed
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._config.workers)
            batches = batches.mp_prefetch(options)
        return iter(batches)


class _Examples:
    """This host's slots of all batches, decoded: the random access that Grain reads from."""

    def __init__(
        self,
        dataset: Dataset,
        masks: str,
        rows: "Plan | np.ndarray",
        local: int,
        size: int,
        last: int,
    ):
        self._dataset, self._masks, self._rows = dataset, masks, rows
        self._local, self._size, self._last = local, size, last
        self._offset = jax.process_index() * local

    def __len__(self) -> int:
        return self._last * self._local

    def __getitem__(self, slot: int) -> dict[str, Any]:
        step, place = divmod(slot, self._local)
        row = int(self._rows[step * self._size + self._offset + place])
        pixels = _pixels(self._dataset.records[row], self._masks)
        return _facts(self._dataset, self._masks, np.int32(row)) | pixels


def _facts(dataset: Dataset, masks: str, row: Any) -> dict[str, Any]:
    """What is known of a row, or of several, without its pixels."""
    facts = {"row": row, "label": dataset.labels[row]}
    if masks:
        there = dataset.table.get(f"has_{masks}", np.zeros(len(dataset), np.bool_))
        facts["has_mask"] = there[row]
    return facts


def _pixels(example: Mapping[str, Any], masks: str) -> dict[str, np.ndarray]:
    image = example["image"]
    if not masks:
        return {"image": image}
    mask = example.get(masks)
    blank = np.zeros(image.shape[:2], np.uint8)
    return {"image": image, "mask": blank if mask is None else (mask > 0).astype(np.uint8)}


def decode_all(
    dataset: Dataset, image_size: int | tuple[int, int], masks: str = ""
) -> dict[str, np.ndarray]:
    """All images of a data set.

    Args:
        dataset: The data set.
        image_size: Height and width of its images, one length or two.
        masks: Field of the masks to decode too, see `dataset.MASKS`; '' for none.

    Returns:
        ``image`` uint8 ``(N, H, W, 3)`` and, where it is asked for, ``mask`` uint8 ``(N, H, W)`` in
        {0, 1}.
    """
    shape = len(dataset), *height_width(image_size)
    arrays = {"image": np.empty((*shape, 3), np.uint8)}
    if masks:
        arrays["mask"] = np.empty(shape, np.uint8)

    def decode(row: int) -> None:
        for name, pixels in _pixels(dataset.records[row], masks).items():
            arrays[name][row] = pixels

    with ThreadPoolExecutor() as pool:
        collections.deque(pool.map(decode, range(len(dataset))), maxlen=0)
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
