"""Batches of JPEG files by other input pipelines: tf.data and PyTorch's DataLoader.

Each gives uint8 ``(batch, size, size, 3)``, decoded at 1/2, 1/4 or 1/8 if that is no smaller than
``size``, as ours does. The order of all files of a measurement is given, so that all read the same.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.steps import Flow

#: Batches that a worker of the DataLoader prefetches.
AHEAD = 2


def _tf_data(paths: Sequence[str], size: int, batch: int, antialias: bool) -> Iterator[Any]:
    """tf.data with its own choice of parallelism; bilinear, antialiased as ours or not."""
    import tensorflow as tf

    shortest = int(min(tf.io.extract_jpeg_shape(tf.io.read_file(paths[0]))[:2]))
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or shortest // s >= size)

    def decode(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=scale)
        image = tf.image.resize(image, (size, size), antialias=antialias)
        return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(list(paths))
    images = files.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


class _Files:
    """A map-style data set of PyTorch; Pillow decodes."""

    def __init__(self, paths: Sequence[str], size: int):
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch
        from PIL import Image

        shape = self.size, self.size
        with Image.open(self.paths[index]) as image:
            image.draft("RGB", shape)
            resized = image.convert("RGB").resize(shape, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))


def _data_loader(paths: Sequence[str], size: int, batch: int) -> Iterator[Any]:
    """A DataLoader with a process per core."""
    import torch

    cuda, files = torch.cuda.is_available(), _Files(paths, size)
    loader: Any = torch.utils.data.DataLoader(
        files,  # type: ignore[arg-type]
        batch,
        num_workers=os.cpu_count() or 1,
        prefetch_factor=AHEAD,
        pin_memory=cuda,
    )
    return (each.cuda(non_blocking=True) if cuda else each for each in loader)


def prepare(peer: str, paths: Sequence[str], size: int, batch: int, warm: int, **_: Any) -> Flow:
    """Makes a pipeline ready and reads its ``first`` batch.

    Args:
        peer: ``tf.data``, ``tf.data, aliased`` or ``DataLoader``.
        paths: All files of a measurement.
        size: Height and width of what is read.
        batch: Images in a batch.
        warm: Uncounted batches before and after a measurement.
    """
    if peer == "DataLoader":
        library, read = "torch", functools.partial(_data_loader, paths, size, batch)
    else:
        antialias = peer == "tf.data"
        library, read = "tensorflow", functools.partial(_tf_data, paths, size, batch, antialias)
    pixels = next(read())
    first = np.asarray(pixels.cpu() if hasattr(pixels, "cpu") else pixels)
    version = f"{library} {__import__(library).__version__}"
    facts = {"version": version, "first": first}
    return Flow(lambda count: read(), warm, lambda batch: None, facts)
