"""Batches of JPEG files by the input pipelines of others: tf.data, and PyTorch's DataLoader.

    python benchmarks/peers/input_pipelines.py tf.data FOLDER

answers `elsewhere.Process`: ``files`` (names in FOLDER, in the order to read them), ``size``,
``batch``, and either ``warm`` and ``batches`` (the seconds of each batch after so many to warm up,
more following that are not counted) or ``out`` (a file for the pixels of the first batch). Each
gives uint8 ``(batch, size, size, 3)``, decoded at 1/2, 1/4 or 1/8 where that is no smaller than
``size``, as ours is. An epoch's order is given beforehand in all, so that all read the same.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from elsewhere import serve

CORES = os.cpu_count() or 1
#: Batches that a DataLoader's worker has under way.
AHEAD = 2


#: Its version, and what makes batches of paths, a size and a batch size.
Reader = tuple[str, Callable[[Sequence[str], int, int], Iterator[Any]]]


def tf_data(antialias: bool) -> Reader:
    """tf.data with its own choice of parallelism; antialiased bilinear as ours, or plain."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    def read(paths: Sequence[str], size: int, batch: int) -> Iterator[Any]:
        shortest = int(min(tf.io.extract_jpeg_shape(tf.io.read_file(paths[0]))[:2]))
        scale = max(s for s in (1, 2, 4, 8) if s == 1 or shortest // s >= size)

        def decode(path: Any) -> Any:
            image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=scale)
            image = tf.image.resize(image, (size, size), antialias=antialias)
            return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)

        files = tf.data.Dataset.from_tensor_slices(list(paths))
        images = files.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return images.batch(batch).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    return f"tensorflow {tf.__version__}", read


def data_loader() -> Reader:
    """A DataLoader with a process for each core; Pillow decodes."""
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __init__(self, paths: Sequence[str], size: int):
            self.paths, self.size = paths, size

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            shape = self.size, self.size
            with Image.open(self.paths[index]) as image:
                image.draft("RGB", shape)
                resized = image.convert("RGB").resize(shape, Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(resized))

    def read(paths: Sequence[str], size: int, batch: int) -> Iterator[Any]:
        files, cuda = Files(paths, size), torch.cuda.is_available()
        loader = torch.utils.data.DataLoader(
            files, batch, num_workers=CORES, prefetch_factor=AHEAD, pin_memory=cuda
        )
        return (each.cuda(non_blocking=True) if cuda else each for each in loader)

    return f"torch {torch.__version__}", read


READERS: dict[str, Callable[[], Reader]] = {
    "tf.data": lambda: tf_data(antialias=True),
    "tf.data, aliased": lambda: tf_data(antialias=False),
    "DataLoader": data_loader,
}


def main(reader: str, folder: Path) -> None:
    """Answers until its input ends."""
    version, read = READERS[reader]()

    def answer(question: dict[str, Any]) -> Any:
        paths = [str(folder / name) for name in question["files"]]
        batches = read(paths, question["size"], question["batch"])
        if "out" in question:
            first = next(batches)
            np.save(question["out"], first.cpu() if hasattr(first, "cpu") else first)
            return None
        take(batches, question["warm"])
        since = time.perf_counter()
        take(batches, question["batches"])
        seconds = time.perf_counter() - since
        for _ in batches:  # What is under way ends before another way is measured.
            pass
        return seconds / question["batches"]

    serve(version, answer)


def take(batches: Iterator[Any], count: int) -> None:
    """Takes batches and forgets them."""
    for _ in range(count):
        next(batches)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
