"""Runs with random weights, for tests of what is done with a trained one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxattn import evaluate, run_dir
from jaxattn.config import resolved
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import height_width
from jaxattn.models import registry
from jaxattn.run import Run
from jaxattn.runtime import devices


def untrained(
    folder: Path,
    config: ConfigDict,
    *,
    names: Sequence[str] = ("a", "b", "c"),
    model: nn.Module | None = None,
    prepared_size: int | None = None,
) -> Run:
    """A run of random weights in a new folder, which has no checkpoints.

    Args:
        folder: Created.
        config: Of the run.
        names: Of its classes.
        model: Another model than the config's, smaller.
        prepared_size: See `jaxattn.data.dataset.Dataset`.
    """
    config = resolved(config)
    counts = {name: 10 * (i + 1) for i, name in enumerate(names)}
    facts = {"dataset": "synthetic", "prepared_size": prepared_size, "training_images": counts}
    run_dir.write_json(folder / run_dir.CONFIG, json.loads(config.to_json()))
    run_dir.write_json(folder / run_dir.CLASSES, facts)
    if model is None:
        model = registry.create(num_classes=len(names), **config.model.to_dict())
    shape = Crops(**config.crops).input_shape(*height_width(config.dataset.image_size))
    return Run(
        folder=folder,
        config=config,
        class_names=tuple(names),
        metadata={
            "step": 0,
            "model": config.model.to_dict(),
            "image_size": config.dataset.image_size,
            "training_images": counts,
            "prepared_size": prepared_size,
        },
        model=model,
        variables=variables(model, shape),
        _step=evaluate.make_predict_step(
            config, model, devices.mesh(), config.evaluation.tta, bool(config.evaluation.grad_cam)
        ),
    )


def variables(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """Variables as a model might draw them: its own initializers take long to compile."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var", "gamma"), np.float32)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    return {"batch_stats": {}} | jax.tree_util.tree_map_with_path(draw, shapes)
