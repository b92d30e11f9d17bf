import subprocess
import sys

import pytest

STREAM = """
import pathlib, resource, runpy, sys
from jaxattn import train
from jaxattn.config import base
from jaxattn.models import registry
conftest = runpy.run_path(sys.argv[1])
registry.MODELS["tiny"] = registry.Model(conftest["Tiny"], 32)
config = base()
config.model.name = "tiny"
config.dataset.update(image_size=128, num_images=int(sys.argv[2]))
config.split.update(validation=0.0, test=0.1)
config.batch_size, config.steps_per_epoch, config.epochs = 16, 8, 2
config.loader.name = sys.argv[3]
assert train.train(config, pathlib.Path(sys.argv[4]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.parametrize("loader", ["grain", "resident"])
def test_streaming_memory_does_not_grow_with_the_data_set(tmp_path, loader):
    """4,400 more images of 128x128 are 206 MiB: streamed, none of it is held; resident, all of it.

    The resident run shows that the measure would notice.
    """
    conftest = __file__.replace("test_memory.py", "conftest.py")
    peaks = []
    counts = (600, 5000) if loader == "grain" else (600, 1900)
    for count in counts:
        run = [
            sys.executable,
            "-c",
            STREAM,
            conftest,
            str(count),
            loader,
            str(tmp_path / str(count)),
        ]
        peaks.append(float(subprocess.run(run, check=True, capture_output=True).stdout.split()[-1]))
    grown, held = peaks[1] - peaks[0], (counts[1] - counts[0]) * 128 * 128 * 3 / 2**20
    print(f"{loader}: peak {peaks[0]:.0f} -> {peaks[1]:.0f} MiB, {held:.0f} MiB of images")
    assert (grown < 0.25 * held) if loader == "grain" else (grown > 0.8 * held)
