import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux to measure memory"
)

TRAIN = """
import pathlib, sys
import numpy as np
from jaxattn import runtime, train
from jaxattn.data.load import DATASETS
from jaxattn.config import base
from jaxattn.data.dataset import COLUMNS, Dataset
from tests.tiny import Noise
count = int(sys.argv[1])
runtime.setup(1)
table = {name: np.zeros(count, dtype) for name, dtype in COLUMNS.items()}
table["image_id"] = table["lesion_id"] = np.arange(count).astype(str)
table["label"] = np.arange(count, dtype=np.int32) % 3
noise = Dataset("noise", ("a", "b", "c"), table, Noise(count, 256))
DATASETS["noise"] = lambda config: noise
config = base()
config.model.name = "tiny"
config.dataset.update(name="noise", image_size=256)
config.split.update(validation=0.0, test=0.1)
config.batch_size, config.steps_per_epoch, config.epochs = 8, 8, 2
config.loader.name = sys.argv[2]
assert train.train(config, pathlib.Path(sys.argv[3]))
# Not ru_maxrss, which a child process has from its parent.
print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.parametrize(("loader", "counts"), [("grain", (500, 5000)), ("in_memory", (500, 2500))])
def test_streaming_memory_does_not_grow_with_the_data_set(tmp_path, loader, counts):
    """4,500 more images of 256x256 are 844 MiB: streamed, none of it is held.

    Images in memory are all held: that run shows that the measure would notice.
    """
    peaks = []
    for count in counts:
        run = [sys.executable, "-c", TRAIN, str(count), loader, str(tmp_path / str(count))]
        done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True)
        peaks.append(float(done.stdout.split()[-1]))
    grown, held = peaks[1] - peaks[0], (counts[1] - counts[0]) * 256 * 256 * 3 / 2**20
    print(f"{loader}: peak {peaks[0]:.0f} -> {peaks[1]:.0f} MiB, {held:.0f} MiB of images")
    assert (grown < 0.2 * held) if loader == "grain" else (grown > 0.8 * held)


FREE = """
import resource, statistics, sys
import jax
from jaxattn.runtime import memory
if sys.argv[1] == "keep":
    memory.keep()
last = jax.jit(lambda x: jax.numpy.cumsum(x, axis=0)[-1].sum())
x, faults = jax.numpy.zeros((1 << 15, 1 << 9)), []
for repeat in range(60):
    last(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(b - a for a, b in zip(faults[30:], faults[31:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step():
    """Two intermediate arrays of 64 MiB are 32,768 pages of 4 KiB: cleared each time, or never.

    The first half of the runs may take more: one may begin before the last has freed its arrays,
    until the heap has room for both.
    """
    faults = {
        way: float(
            subprocess.run(
                [sys.executable, "-c", FREE, way], check=True, capture_output=True
            ).stdout
        )
        for way in ("keep", "give back")
    }
    assert faults["keep"] < 1000 < 16_000 < faults["give back"]


LARGE = """
import pathlib
import jax
from jaxattn.runtime import memory
memory.keep()
x = jax.numpy.ones((256, 1 << 18)).block_until_ready()
print(pathlib.Path("/proc/self/smaps_rollup").read_text().split("AnonHugePages:")[1].split()[0])
"""


def _large_pages_are_to_be_asked_for() -> bool:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.is_file() and "[madvise]" in path.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif(
    not _large_pages_are_to_be_asked_for(), reason="the system gives large pages to all or to none"
)
def test_arrays_lie_in_large_pages():
    """One array of 256 MiB, less at most a page of 2 MiB at either end; other memory may join."""
    run = subprocess.run([sys.executable, "-c", LARGE], check=True, capture_output=True)
    assert int(run.stdout) >= 252 * 1024


COMPILE = """
import ctypes, re, sys
import jax
from jaxattn.runtime import memory
jax.config.update("jax_enable_compilation_cache", False)
if sys.argv[1] == "keep":
    memory.keep()
def layers(x):
    for width in range(1, 100):
        x = jax.numpy.tanh(x @ jax.numpy.ones((x.shape[1], width)))
    return x.sum()
jax.jit(jax.grad(layers)).lower(jax.numpy.ones((8, 100))).compile()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = ctypes.c_int, ctypes.c_void_p
libc.fclose.argtypes = (ctypes.c_void_p,)
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
sizes = re.findall(r'<size from="(\\d+)" to="(\\d+)".*count="(\\d+)"', open(sys.argv[2]).read())
print(sum(int(n) for least, most, n in sizes if 8192 <= int(least) and int(most) < 1 << 20))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.libc_ver()[1] < "2.33",
    reason="needs glibc's mallinfo2",
)
def test_compiling_leaves_few_free_blocks_to_search(tmp_path):
    """Counted by glibc: free blocks of 8 KiB to 1 MiB after a program of 100 layers."""
    free = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", COMPILE, way, str(tmp_path / way)],
                check=True,
                capture_output=True,
            ).stdout
        )
        for way in ("keep", "give back")
    }
    assert free["keep"] < 300 < 1000 < free["give back"]
