"""Images that stay on a TPU, in rows of 128 bytes.

A TPU lays arrays out in tiles of their last two axes. Read from ``(N, H, W, 3)``, a batch of rows
made XLA copy all N images to another layout in every step, with three channels padded to 128 on the
way. Of rows of 128 bytes it reads those of the batch.
"""

import math
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Int, UInt8

WIDTH = 128  # lanes of a TPU

#: Platforms on which loaders pack what stays on the device.
PLATFORMS = ("tpu",)


class Packed(flax.struct.PyTreeNode):
    """Arrays of one shape, indexed like one array ``(N, *shape)``.

    Attributes:
        rows: uint8 ``(N, rows, 128)``; the last row ends with zeros.
        shape: Of one array.
    """

    rows: Any
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def __getitem__(self, index: Int[Array, " B"]) -> UInt8[Array, "B ..."]:
        """The arrays of some indices."""
        found = self.rows[index].reshape(len(index), -1)
        return found[:, : math.prod(self.shape)].reshape(len(index), *self.shape)


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows an array of that shape fills."""
    return -(-math.prod(shape) // WIDTH)


def pack(arrays: UInt8[np.ndarray, "N ..."]) -> Packed:
    """Packs arrays; copies them only where their size is no multiple of 128."""
    shape, flat = arrays.shape[1:], arrays.reshape(len(arrays), -1)
    count = rows_of(shape)
    if missing := count * WIDTH - flat.shape[1]:
        flat = np.pad(flat, ((0, 0), (0, missing)))
    return Packed(flat.reshape(len(arrays), count, WIDTH), shape)
