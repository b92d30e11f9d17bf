"""Our own training step for benchmarks: all that they use of `jaxattn.train`."""

import importlib
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.peers.steps import steady
from jaxattn import train
from jaxattn.config import base
from jaxattn.train import Training


def setup(config: ConfigDict, mesh: Mesh | None = None) -> Training:
    """Everything that training needs, on all devices or those of a mesh."""
    return train.setup(config, mesh)


def published(model: str, batch: int, dtype: str, size: int) -> ConfigDict:
    """The published config of a model, on the synthetic data set at any size."""
    file = "koefler2023" if model.startswith("koefler") else "datta2021"
    config = importlib.import_module(f"configs.{file}").get_config(model.removeprefix("koefler_"))
    config.dataset.update(name="synthetic", image_size=size, num_images=1400)
    config.split.strategy = "lesion"
    config.batch_size, config.dtype = batch, dtype
    return config


def small(size: int, width: int, batch: int) -> ConfigDict:
    """The small attention CNN on a few synthetic images."""
    config = base()
    config.dataset.update(image_size=size, num_images=210)
    config.model.width = width
    config.batch_size = config.evaluation.batch_size = batch
    config.loader.name = "in_memory"
    return config


class Step:
    """A compiled training step on a batch that is in place.

    Attributes:
        run: What is trained.
        state: The training state.
        compiled: The program.
        compile_seconds: Seconds that lowering and compiling took.
    """

    def __init__(self, run: Training, data: Any = None, batch: Any = None):
        """Compiles the step; data and batch are by default those of the run's loader."""
        self.run, self.state = run, run.init()
        self._data = run.loader.data if data is None else data
        self._batch = batch or next(run.loader.training(run.sampler, 0, 1))
        jitted: Any = run.step
        since = time.perf_counter()
        self.compiled = jitted.lower(self.state, self._data, self._batch).compile()
        self.compile_seconds = time.perf_counter() - since

    def __call__(self, batch: Any = None) -> dict[str, jax.Array]:
        """Takes a step, on the given batch or the one in place, and returns its metrics."""
        self.state, metrics = self.compiled(self.state, self._data, batch or self._batch)
        return metrics


class Loop(NamedTuple):
    """The training loop, as `measure.seconds` expects it.

    Attributes:
        step: Takes the steps.
        warm: Uncounted steps before: enough to use up prefetched batches.
        in_place: Whether to use the batch in place, and not those of the loader.
    """

    step: Step
    warm: int = 1
    in_place: bool = False

    def time(self, calls: int) -> float:
        """Mean seconds of a step."""
        run, count = self.step.run, self.warm + calls
        # The loader has more batches, so that it prefetches to the end.
        batches = (
            iter([None] * count)
            if self.in_place
            else run.loader.training(run.sampler, 0, count + calls)
        )
        work = (self.step(next(batches)) for _ in range(count))
        return steady(work, jax.block_until_ready, self.warm, calls)
