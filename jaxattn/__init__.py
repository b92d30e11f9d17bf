"""Attention-based skin-lesion classifiers in JAX: train, convert, evaluate, inspect.

::

    import jaxattn

    jaxattn.list_models()
    model = jaxattn.create_model("irv2_sa", num_classes=7)
    run = jaxattn.load_run("runs/ham_irv2")
    probabilities, maps = run.predict(["lesion.jpg"])
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn.models.registry import create as create_model
    from jaxattn.models.registry import names as list_models
    from jaxattn.run import Run, load_run

__all__ = ["Run", "__version__", "create_model", "list_models", "load_run"]

__version__ = importlib.metadata.version("jaxattn")

#: Where each name is defined; imported when it is first used, so that a tool that needs one part
#: of the package does not wait for the others.
_EXPORTS = {
    "Run": ("jaxattn.run", "Run"),
    "create_model": ("jaxattn.models.registry", "create"),
    "list_models": ("jaxattn.models.registry", "names"),
    "load_run": ("jaxattn.run", "load_run"),
}


def _leave_working_directory() -> None:
    """Takes the working directory off the module path, where ``python -m jaxattn.X`` puts it first.

    It may be a folder from elsewhere, and JAX and other packages import optional ones by name:
    a ``tensorflow.py`` in it would run. A checkout that is used without being installed stays.
    """
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    here = str(Path.cwd())
    if (
        module
        and module[0].partition(".")[0] == __name__
        and sys.path[:1] == [here]
        and Path(here, __name__).resolve() != Path(__file__).resolve().parent
    ):
        del sys.path[0]


_leave_working_directory()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jaxattn' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
