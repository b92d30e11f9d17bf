"""Checks every shape annotation in every test, and makes data sets that tests share."""

import os
import sys
from typing import Any

from jaxtyping import install_import_hook

# Bounds are those of float32, which products on an accelerator are not by default.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
install_import_hook("jaxattn", "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from jaxattn import cli  # noqa: E402
from jaxattn.config import base  # noqa: E402
from jaxattn.data.dataset import Dataset  # noqa: E402
from tests import browser as chromium  # noqa: E402
from tests.tiny import Noise  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(pytestconfig):
    """Keeps compiled programs from run to run, shared by all workers and by subprocesses."""
    folder = str(pytestconfig.rootpath / ".pytest_cache" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, see tests/browser.py; skips where there is none."""
    if chromium.missing():
        pytest.skip(chromium.missing())
    with chromium.open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def make_dataset():
    """Makes a data set of noise from its labels and lesions."""

    def make(labels, lesions=None, size: int = 8, names=("a", "b", "c")) -> Dataset:
        labels = np.asarray(labels, np.int32)
        count = len(labels)
        lesions = np.arange(count) if lesions is None else lesions
        unknown = np.full(count, "")
        return Dataset(
            name="noise",
            class_names=tuple(names),
            table={
                "image_id": np.array([f"IMG_{i:05d}" for i in range(count)]),
                "lesion_id": np.array([f"LES_{i}" for i in lesions]),
                "label": labels,
                "dx_type": unknown,
                "age": np.full(count, np.nan, np.float32),
                "sex": unknown,
                "localization": unknown,
                "has_mask": np.ones(count, bool),
            },
            records=Noise(count, size),
        )

    return make


def make_tiny_config() -> ConfigDict:
    """A run of the tiny classifier on embedded data: 4 epochs of 6 steps."""
    config = base()
    config.model = ConfigDict({"name": "tiny", "width": 8})
    config.dataset.image_size = 32
    config.dataset.num_images = 210
    config.augment.brightness = 0.1
    config.batch_size = 16
    config.steps_per_epoch = 6
    config.epochs = 4
    config.ema_decay = 0.9
    config.evaluation.batch_size = 16
    config.log_every_steps = 4
    config.checkpoint_every_steps = 4
    config.loader.name = "in_memory"
    return config


@pytest.fixture
def tiny_config() -> ConfigDict:
    """See `make_tiny_config`."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def make_config():
    """`make_tiny_config`, for fixtures of a wider scope."""
    return make_tiny_config


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command line in this process: ``(module, *arguments) -> (exit status, out, err)``."""

    def run(module: Any, *arguments: str) -> tuple[int, str, str]:
        before, own = set(flags.FLAGS), set[str]()
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        capsys.readouterr()
        try:
            module.define_flags()
            own = set(flags.FLAGS) - before
            with pytest.raises(SystemExit) as ended:
                cli.run_main(module.main, positional=getattr(module, "POSITIONAL", False))
        finally:
            flags.FLAGS.unparse_flags()
            for name in set(flags.FLAGS) - before:
                # Modules that were imported in between go on needing theirs.
                if name in flags.FLAGS and (name in own or name.startswith("config.")):
                    delattr(flags.FLAGS, name)
        return ended.value.code or 0, *capsys.readouterr()

    return run
