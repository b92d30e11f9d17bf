"""One mesh over all devices of all hosts: the state on each of them, the batch spread over them."""

import contextlib
import ctypes
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn.errors import InputError

#: Parameters of glibc's ``mallopt``: no block of its own for a large array, nothing given back (-1:
#: however much it is), one arena for all threads, because the others' memory ends at 64 MiB.
_MALLOC = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
_MADV_HUGEPAGE, _LARGE_PAGE = 14, 2 << 20


def keep_memory() -> None:
    """Has the process keep memory that it has freed; to be called before anything is computed.

    XLA's CPU backend takes the memory of a step's intermediate arrays when the step begins and
    frees it when it ends. glibc gives it back to the system, which clears it page by page the next
    time: a fifth of all processor time of a small network's training. What is kept lies in pages
    of 2 MiB, where the system has them, of which a processor finds more without looking them up.
    Does nothing where there is no glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOC.values():
            libc.mallopt(parameter, value)
        _use_large_pages(libc)


def _use_large_pages(libc: ctypes.CDLL) -> None:
    """Asks for large pages for the heap that is to come, up to half of the machine's memory.

    The heap is made as long, not filled: what is freed stays in it, and takes no memory before it
    is used.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    length = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    start = libc.malloc(length)
    if start:
        first = -(-start // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(first, start + length - first, _MADV_HUGEPAGE)
        libc.free(start)


def split_cpu(devices: int) -> None:
    """Makes several devices of a CPU's cores; to be called before anything is computed.

    XLA computes much of a small network on one core. As one device per core, each with its share
    of the batch, the same step keeps all of them busy. Does nothing where there is an accelerator,
    but for `keep_memory`.

    Raises:
        InputError: Not a positive number.
    """
    if devices < 1:
        raise InputError(f"cpu_devices: {devices} given, 1 or more wanted")
    keep_memory()
    jax.config.update("jax_num_cpu_devices", devices)


def mesh() -> Mesh:
    """A mesh ``('data',)`` over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(field: str, batch_size: int) -> None:
    """Raises InputError where a batch cannot be spread evenly over the devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise InputError(
            f"{field}: {batch_size} given, a multiple of the {jax.device_count()} devices wanted"
        )


def put_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on its devices, as part of the global batch."""
    sharding = batched(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays, the same on every host, on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )
