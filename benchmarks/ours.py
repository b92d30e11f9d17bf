"""Our own training step and prediction for benchmarks."""

import importlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.peers.steps import Flow
from jaxattn import evaluate, train
from jaxattn.config import base
from jaxattn.run import Run
from jaxattn.runtime import devices
from jaxattn.train import Training


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


def loop(step: Step, warm: int = 1, in_place: bool = False) -> Flow:
    """The training loop.

    Args:
        step: Takes the steps.
        warm: Uncounted steps before: enough to use up prefetched batches.
        in_place: Whether to use the batch in place, and not those of the loader.
    """

    def start(count: int) -> Iterator[Any]:
        batches: Iterator[Any] = itertools.repeat(None)
        if not in_place:  # the loader has more batches, so that it prefetches to the end
            batches = step.run.loader.training(step.run.sampler, 0, 2 * count)
        return (step(batch) for _, batch in zip(range(count), batches, strict=False))

    return Flow(start, warm)


def untrained(config: ConfigDict) -> Run:
    """A run with random weights, to classify with."""
    training, rng = train.setup(config), np.random.default_rng(0)
    config, mesh = training.config, training.mesh

    def draw(leaf: Any) -> np.ndarray:  # compiling the model's own initialisation takes longer
        if leaf.ndim < 2:
            return np.ones(leaf.shape, leaf.dtype)
        scale = (2 / math.prod(leaf.shape[:-1])) ** 0.5
        return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    names = tuple(training.dataset.class_names)
    return Run(
        folder=Path(),
        config=config,
        class_names=names,
        metadata={"training_images": dict.fromkeys(names, 1), "prepared_size": None},
        model=training.model,
        variables=devices.put_replicated(mesh, jax.tree.map(draw, training.like.variables)),
        _step=evaluate.make_predict_step(config, training.model, mesh),
    )
