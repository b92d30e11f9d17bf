"""The process' heap: memory that a step frees is kept for the next one, and is found quickly.

XLA's CPU backend takes memory of glibc's ``malloc``, one block for a step's intermediate arrays and
many small ones for its sums, products and convolutions. Where another allocator takes the place of
glibc's, nothing here does anything.
"""

import contextlib
import ctypes
import functools
import os
from typing import Any

import jax

#: Parameters of ``mallopt``: no block of its own for a large array, nothing given back (-1: however
#: much it is), one arena for all threads, because the others' memory ends at 64 MiB.
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_LARGE_PAGE = 2 << 20
#: Of how many bytes free blocks are taken out of the lists: smaller ones are found quickly, and
#: larger ones are few, and are for arrays.
_GAPS = (8 << 10, 1 << 20)
#: A program that compiles faster than this, in seconds, leaves little behind.
_LONG = 1.0


@functools.cache
def keep() -> None:
    """Has the process keep memory that it has freed; to be called before anything is computed.

    A step's memory is freed when it ends. glibc gives it back to the system, which clears it page
    by page the next time: a fifth of all processor time of a small network's training. What is kept
    lies in pages of 2 MiB, where the system has them, of which a processor finds more without
    looking them up.

    Compiling a large network leaves free blocks between those in use (DenseNet-201: 200,000, of
    1.5 GB). Each small block that a step takes or frees is looked for among them while all other
    threads wait, for a third of the step's time. Hence, from now on, they are taken out of the
    lists of free blocks whenever a program has been compiled, and their pages given back to the
    system.
    """
    if os.environ.get("JAXATTN_KEEP_MEMORY") == "0":
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
    """glibc, if the process takes its memory of it.

    Its functions are called without giving other Python threads a turn: they are many.

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
    """Of the whole pages in a block."""
    first = -(-start // page) * page
    last = (start + length) // page * page
    if first < last:
        libc.madvise(first, last - first, advice)


def _use_large_pages(libc: Any) -> None:
    """Asks for large pages for the heap that is to come, up to half of the machine's memory.

    The heap is made as long, not filled: what is freed stays in it, and takes no memory before it
    is used.
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
    """Takes the free blocks between those in use out of glibc's lists, and never frees them.

    A block of the gaps, of which glibc takes the smallest that is large enough, lies below the end
    of the part of the heap that was ever used. The large ones are set aside meanwhile, lest they be
    taken in small pieces.
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
