"""Kills a run at its file operations, starts it again, and compares it with one left alone.

    python tests/integration/kill_points.py [--points=N] [--seed=S]

Every creation, renaming and deletion of a file or folder by a run (start, training, validation,
checkpoints, evaluation, report) is a point to kill it at with SIGKILL. Without --points all are
tried. Prints a line for each that ends otherwise, and exits with their number.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxattn import checkpoints, evaluate, run_dir, train
from jaxattn.checkpoints import Checkpoints
from jaxattn.config import base
from jaxattn.models import registry

RESULT, MODULES = "result.json", "modules.json"
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink")


class Mean(nn.Module):
    """The least that can be trained: a dense layer on the mean colour."""

    num_classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train: bool):
        del train
        return nn.Dense(self.num_classes, name="logits")(images.mean((1, 2))), {}


registry.MODELS.setdefault("mean", registry.Model(Mean, 32))


def make_config():
    """Two epochs of three steps, with a checkpoint within each."""
    config = base()
    config.model.name = "mean"
    config.dataset.image_size, config.dataset.num_images = 32, 70
    config.batch_size = config.evaluation.batch_size = 8
    config.epochs, config.steps_per_epoch = 2, 3
    config.log_every_steps, config.checkpoint_every_steps = 1, 2
    config.loader.name = "in_memory"
    config.split.update(test=0.2, validation=0.2)
    if "resamples" in config.evaluation:
        config.evaluation.resamples = 20
    return config


def watch(folder: Path, kill_at: int, count_to: Path | None = None) -> None:
    """Makes this process kill itself before its ``kill_at``-th file operation in the folder."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event not in EVENTS or not _changes(event, arguments, str(folder)):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if count_to is not None:
            os.pwrite(counter, str(seen).encode(), 0)

    counter = -1 if count_to is None else os.open(count_to, os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(hook)


def _changes(event: str, arguments: tuple, folder: str) -> bool:
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if flags else "w" in (mode or "")
        return bool(writes) and str(path).startswith(folder)
    relative = event in ("os.remove", "os.rmdir") and arguments[-1] != -1  # of shutil.rmtree
    return relative or any(str(path).startswith(folder) for path in arguments)


def life(folder: Path, kill_at: int = 0, count_to: Path | None = None) -> int:
    """Starts or resumes the run in a process of its own; returns how that ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        watch(folder, kill_at, count_to)
        train.train(make_config(), folder)
        evaluate.evaluate(folder)
        evaluate.write_report(folder)
        (folder.parent / RESULT).write_text(json.dumps(result(folder)))
        (folder.parent / MODULES).write_text(json.dumps(list(sys.modules)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def result(folder: Path) -> dict:
    """All that must not depend on what happened on the way."""
    with Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        kept = {s: saved._read(s)["progress"] for s in saved._steps}
        best = saved.best
    arrays = {}
    for step in kept:
        tree = checkpoints.read_arrays(folder / run_dir.CHECKPOINTS / str(step) / "state")
        leaves = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
        arrays[step] = hashlib.sha256(leaves).hexdigest()
    log = [json.loads(line) for line in (folder / run_dir.LOG).read_text().splitlines()]
    predictions = (folder / "evaluation" / "test_predictions.csv").read_bytes()
    left = [
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".part", ".deleted")
    ]
    return {
        "kept": kept,
        "best": best,
        "arrays": arrays,
        "log": [(e["kind"], e["step"], e["loss"]) for e in log],
        "predictions": hashlib.sha256(predictions).hexdigest(),
        "left": left,
    }


def main() -> int:
    """Tries the points; returns how many end otherwise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kill_points_"))
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert life(root / "whole" / "run", count_to=root / "count") == 0, "the run itself fails"
    for name in json.loads((root / "whole" / MODULES).read_text()):
        with contextlib.suppress(Exception):  # what a life imports, all lives are born with
            importlib.import_module(name)
    wanted = json.loads((root / "whole" / RESULT).read_text())
    points = list(range(1, int((root / "count").read_text()) + 1))
    if given.points:
        points = sorted(random.Random(given.seed).sample(points, given.points))
    wrong = 0
    for point in points:
        place = root / str(point)
        killed = life(place / "run", kill_at=point)
        resumed = life(place / "run")
        found = json.loads((place / RESULT).read_text()) if resumed == 0 else {"status": resumed}
        if found != wanted:
            wrong += 1
            print(f"point {point}: killed {killed}, {found}; expected {wanted}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
    print(f"{len(points)} points, {wrong} wrong")
    shutil.rmtree(root)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
