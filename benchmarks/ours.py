"""Our own training step and prediction for benchmarks: all that they use of the package."""

import functools
import importlib
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.peers.steps import steady
from jaxattn import config as configs
from jaxattn import evaluate, train
from jaxattn.config import base
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import height_width
from jaxattn.models import registry as models
from jaxattn.run import Run
from jaxattn.runtime import devices
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


def image_size(model: str) -> int:
    """The published height and width of a model's input."""
    return models.find(model).image_size


def untrained(config: ConfigDict, classes: int) -> Run:
    """A run with random weights, to classify with."""
    config = configs.resolved(config)
    names = tuple(f"class {i}" for i in range(classes))
    options = config.model.to_dict()
    model = models.create(num_classes=classes, dtype=jnp.dtype(config.dtype), **options)
    height, width = height_width(config.dataset.image_size)
    shape = (1, *Crops(**config.crops).input_shape(height, width))
    init = functools.partial(model.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    rng, mesh = np.random.default_rng(0), devices.mesh()

    def draw(leaf: Any) -> np.ndarray:  # compiling the model's own initialisation takes longer
        if leaf.ndim < 2:
            return np.ones(leaf.shape, leaf.dtype)
        scale = (2 / math.prod(leaf.shape[:-1])) ** 0.5
        return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return Run(
        folder=Path(),
        config=config,
        class_names=names,
        metadata={"training_images": dict.fromkeys(names, 1), "prepared_size": None},
        model=model,
        variables=devices.put_replicated(mesh, dict(jax.tree.map(draw, like))),
        _step=evaluate.make_predict_step(config, model, mesh),
    )
