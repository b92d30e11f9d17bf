"""A trained run as files for others: ``python -m jaxattn.export --run=RUN --out=DIR``.

`stablehlo` writes a program that needs jax alone, `weights` the parameters as safetensors or for
Keras, and `card` says what the model is and is not. To add a format, write a function that takes
the run and a folder and writes its files there::

    @FORMATS.register("mine")
    def write(run: Run, folder: Path) -> None: ...
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxattn.errors import invalid
from jaxattn.export import card, stablehlo, weights
from jaxattn.export.formats import FORMATS
from jaxattn.files import PART, unwritable
from jaxattn.run import Run

__all__ = ["DEFAULT", "FORMATS", "card", "stablehlo", "weights", "write"]

DEFAULT = ("stablehlo", "safetensors", "card")


def write(run: Run, out: Path, formats: Sequence[str] = DEFAULT) -> None:
    """Writes a run in some formats into a new folder.

    The files are written beside it, under another name, and that folder renamed at the end: ``out``
    is complete or not there.

    Args:
        run: The run; its ``config.evaluation`` says which maps and test-time augmentation.
        out: A folder that does not exist, or is empty.
        formats: Names in ``FORMATS``.

    Raises:
        InputError: There is no such format, the folder holds something or cannot be written, or
            the model cannot be written in a format, or sees metadata.
    """
    chosen = [FORMATS[name] for name in formats]
    if run.vocabulary:
        fields = ", ".join(run.vocabulary.columns)
        raise invalid(
            "--run",
            "a model of images alone, as export writes no other yet",
            f"one that sees {fields} too (metadata.fields)",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise invalid("--out", "a new folder", f"{out}, which exists")
    part = out.absolute().with_name(f".{out.absolute().name}{PART}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for write_format in chosen:
            write_format(run, part)
        part.rename(out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
