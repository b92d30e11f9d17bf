"""Keeps memory that a step frees for the next step, and keeps malloc fast. XLA:CPU and glibc only.

XLA's CPU backend allocates with ``malloc``: one block for a step's intermediate arrays and many
small ones for its reductions, products and convolutions. glibc returns the large block to the
system after each step, and searches its free lists for each small one under a lock. With another
allocator (tcmalloc, jemalloc) preloaded nothing here runs.
"""

import contextlib
import ctypes
import functools
import os
from typing import Any

import jax

#: Parameters of ``mallopt``: large arrays come from the heap too, nothing is returned to the
#: system, and all threads share one arena, because the others end at 64 MiB.
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_LARGE_PAGE = 2 << 20
#: Sizes in bytes of the free blocks to take out of the lists: smaller ones are found quickly,
#: larger ones are few and hold arrays.
_GAPS = (8 << 10, 1 << 20)
#: Compilations shorter than this, in seconds, leave few free blocks.
_LONG = 1.0


#: ``JAXATTN_KEEP_MEMORY=0`` turns this module off.
SWITCH = "JAXATTN_KEEP_MEMORY"


@functools.cache
def keep() -> None:
    """Keeps freed memory in the process; to be called before anything is computed.

    glibc would return a step's memory to the system, which clears it page by page when it is
    allocated again: a fifth of the processor time of training a small network. The heap is backed
    by pages of 2 MiB where the system has them.

    Compiling a large network leaves free blocks between used ones (DenseNet-201: 200,000, of
    1.5 GB), among which each small allocation of a step is searched for: a third of the step's
    time. They are taken out of the free lists after each compilation, and their pages returned to
    the system.
    """
    if os.environ.get(SWITCH) == "0":
        return
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
        libc = _glibc()
        for parameter, value in _MALLOPT.values():
            libc.mallopt(parameter, value)
        _use_large_pages(libc)
        jax.monitoring.register_event_duration_secs_listener(functools.partial(_compiled, libc))


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _glibc() -> Any:
    """glibc, if it is the process's allocator; its functions keep Python's lock, as calls are many.

    Raises:
        OSError: There is no glibc, or the process has another allocator.
    """
    libc = ctypes.PyDLL("libc.so.6")
    used, own = (
        ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (ctypes.PyDLL(None), libc)
    )
    if used != own:
        raise OSError("malloc is not glibc's")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, (ctypes.c_ssize_t,)
    return libc


def _advise(libc: Any, start: int, length: int, page: int, advice: int) -> None:
    """Calls ``madvise`` on the whole pages of a block."""
    first = -(-start // page) * page
    last = (start + length) // page * page
    if first < last:
        libc.madvise(first, last - first, advice)


def _use_large_pages(libc: Any) -> None:
    """Extends the heap to half of the machine's memory and asks for large pages in it.

    Pages take no memory before they are first used.
    """
    length = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    start = libc.malloc(length)
    if start:
        _advise(libc, start, length, _LARGE_PAGE, _MADV_HUGEPAGE)
        libc.free(start)


def _compiled(libc: Any, event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration" and seconds > _LONG:
        with contextlib.suppress(AttributeError):  # glibc has had mallinfo2 since 2.33
            _fill_gaps(libc)


def _fill_gaps(libc: Any) -> None:
    """Allocates the free blocks between used ones and never frees them, out of glibc's lists.

    Such a block lies below the end of the part of the heap that was ever used. Large blocks are
    held meanwhile, so that they are not taken in small pieces, and freed at the end.
    """
    libc.mallinfo2.restype = _Mallinfo2
    end = libc.sbrk(0) - libc.mallinfo2().keepcost
    smallest, large = _GAPS
    page = os.sysconf("SC_PAGE_SIZE")
    aside = []
    size = 1 << 30
    while size >= smallest:
        while (block := libc.malloc(size)) and block < end:
            if size >= large:
                aside.append(block)
            else:
                _advise(libc, block, size, page, _MADV_DONTNEED)
        libc.free(block)
        size //= 2
    for block in aside:
        libc.free(block)
