"""The parameters of a run: as safetensors, and as Keras reads them."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from jaxattn.convert import keras, keras_files
from jaxattn.export.formats import FORMATS, preprocessing
from jaxattn.run import Run

SAFETENSORS, KERAS = "model.safetensors", "model.weights.h5"


@FORMATS.register("safetensors")
def write_safetensors(run: Run, folder: Path) -> None:
    """Writes params and batch_stats, named by their paths: ``params/logits/kernel``.

    The file's metadata has, as JSON: ``class_names``, ``model`` (its name and options),
    ``preprocessing`` (see `formats.preprocessing`) and ``step``.
    """
    from safetensors.numpy import save

    flat = traverse_util.flatten_dict(jax.device_get(run.variables), sep="/")
    arrays = {path: np.ascontiguousarray(array) for path, array in flat.items()}
    facts = {
        "class_names": run.class_names,
        "model": run.metadata["model"],
        "preprocessing": preprocessing(run),
        "step": run.metadata["step"],
    }
    metadata = {"format": "np"} | {name: json.dumps(value) for name, value in facts.items()}
    (folder / SAFETENSORS).write_bytes(save(arrays, metadata))


@FORMATS.register("keras")
def write_keras(run: Run, folder: Path) -> None:
    """Writes what ``keras.Model.load_weights`` of the published model reads, see `convert.keras`.

    Raises:
        InputError: The model has no counterpart in Keras.
    """
    options = dict(run.metadata["model"])
    layers = keras.to_layers(options.pop("name"), jax.device_get(run.variables), **options)
    keras_files.write(folder / KERAS, layers)
