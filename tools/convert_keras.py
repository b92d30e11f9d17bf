"""Converts Keras weights to ours, or ours to Keras', unchanged to the last bit. Needs no Keras.

    python tools/convert_keras.py --model=NAME --weights=FILE --out=DIR [--num_classes=N]
    python tools/convert_keras.py --to=keras --weights=DIR --out=FILE

FILE is a legacy .h5 or .hdf5, a .weights.h5 or, to read, a .keras file. NAME is one of our models:
keras_densenet201 is keras.applications' DenseNet201, with or without its top. A written DIR is what
--config.init_from starts training from; to read, it may also be the folder of a run. FILEs are for
keras.Model.load_weights.
"""

import hashlib
from pathlib import Path

import jax
from absl import flags

from jaxattn import pretrained, run_dir
from jaxattn.cli import given, run_main
from jaxattn.convert import keras, keras_files
from jaxattn.errors import invalid

_TO = flags.DEFINE_enum("to", "jax", ("jax", "keras"), "What to convert to.")
_MODEL = flags.DEFINE_string("model", None, "Name of the model, or list; to Keras, DIR says it.")
_WEIGHTS = flags.DEFINE_string("weights", None, "What to convert.")
_OUT = flags.DEFINE_string("out", None, "What to write.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of the model; default: as many as the file has."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels across the images; default: as the model was published."
)


def main(argv: list[str]) -> None:
    """Converts and says what was written."""
    del argv
    if _MODEL.value == "list":
        print("\n".join(keras.names()))
        return
    source, out = Path(given(_WEIGHTS)), Path(given(_OUT))
    if _TO.value == "keras":
        variables, notes = pretrained.load(source)
        keras_files.write(out, keras.to_layers(variables=variables, **_options(notes["model"])))
    else:
        if _MODEL.value is None:
            raise invalid("--model", "the name of a model", "nothing")
        variables = keras.load(
            source, _MODEL.value, _NUM_CLASSES.value, image_size=_IMAGE_SIZE.value
        )
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        notes = {
            "model": {"name": _MODEL.value},
            "source": source.name,
            "sha256": digest,
            "versions": run_dir.versions(),
        }
        pretrained.save(out, variables, notes)
    arrays = jax.tree.leaves(variables)
    print(f"{len(arrays)} arrays, {sum(array.size for array in arrays):,} numbers: {out}")


def _options(model: dict) -> dict:
    return {("model" if key == "name" else key): value for key, value in model.items()}


if __name__ == "__main__":
    run_main(main)
