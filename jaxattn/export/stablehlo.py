"""A run as one StableHLO program: uint8 images in, probabilities and maps out.

The weights are constants of the program. So one file is the model, which cannot be paired with
other weights, and XLA folds what depends on the weights alone; the price is a file as large as the
weights for each exported program.
"""

from pathlib import Path

import jax.export
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn import evaluate
from jaxattn.errors import invalid
from jaxattn.export.formats import FORMATS
from jaxattn.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, SNIPPET = "model.stablehlo", "predict.py"


def export(run: Run) -> jax.export.Exported:
    """The prediction of a run, from the batch of resized images on, as evaluation computes it.

    Crops, normalisation, test-time augmentation and the maps of ``evaluation.cam`` and
    ``evaluation.grad_cam`` are inside.

    Returns:
        Called with uint8 ``(batch, H, W, 3)``, H and W the run's, any batch; returns the
        probabilities ``(batch, classes)`` and a dict of maps ``(batch, K, h, w)``, float32. For
        ``PLATFORMS``.

    Raises:
        InputError: The model takes the size of the batch for a number.
    """
    config, names = run.config, run.class_names
    target = names.index(config.target_class) if config.target_class else None
    predict = evaluate.make_predict(config, run.model, config.evaluation.tta, True, target)
    # The run's devices are not the program's.
    variables = jax.tree.map(jnp.asarray, jax.device_get(run.variables))

    def model(images: Array) -> tuple[Array, dict[str, Array]]:
        return predict(variables, images)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *run.geometry[0], 3), jnp.uint8)
    try:
        return jax.export.export(jax.jit(model), platforms=PLATFORMS)(images)
    except TypeError as error:
        if "_DimExpr" not in str(error):
            raise
        expected = "a model for batches of any size (x.shape[0] instead of len(x))"
        raise invalid("--format=stablehlo", expected, config.model.name) from error


@FORMATS.register("stablehlo")
def write(run: Run, folder: Path) -> None:
    """Writes the program, serialised by `jax.export`, and a script that uses it without jaxattn."""
    (folder / PROGRAM).write_bytes(export(run).serialize())
    script = snippet(run)
    (folder / SNIPPET).write_text(script, encoding="utf-8")


def snippet(run: Run) -> str:
    """The script: it reads images as `Run.read` does, and prints their probabilities."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxattn.export", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    (height, width), centre, prepared_size, resize = run.geometry
    return environment.get_template("predict.py.j2").render(
        program=PROGRAM,
        classes=list(run.class_names),
        height=height,
        width=width,
        centre=centre,
        prepared_size=prepared_size,
        resize=resize,
    )
