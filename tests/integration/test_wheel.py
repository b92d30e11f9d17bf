"""The wheel, used outside the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("matplotlib", "jinja2", "scipy", "sklearn", "tensorflow_datasets", "tensorboardX", "grain")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files behind
    for name in ("jaxattn", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(source)], check=True)
    (wheel,) = folder.glob("jaxattn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site, cwd, *arguments):
    """Runs Python with the wheel alone; returns what it prints."""
    env = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pages_and_cards_are_in_it(site):
    for name in ("demo/page.html.j2", "demo/demo.css", "demo/demo.js", "export/datasets.json"):
        assert (site / "jaxattn" / name).is_file()
    assert len(list((site / "jaxattn" / "export").glob("*.j2"))) == 2


def test_a_run_outside_the_checkout(site, tmp_path):
    """Configs, the report's template and the papers' numbers are in the wheel."""
    fields = ("num_images=210", "image_size=32")
    out = python(
        site,
        tmp_path,
        *("-m", "jaxattn", "train", "--config=quickstart", "--config.model.width=8"),
        *("--config.epochs=1", "--config.steps_per_epoch=1", "--config.batch_size=16"),
        *(f"--config.dataset.{field}" for field in fields),
    )
    assert "report: runs/quickstart/report.html" in out
    assert (tmp_path / "runs/quickstart/report.html").stat().st_size > 10_000
    listed = python(
        site,
        tmp_path,
        "-c",
        "import jaxattn, jaxattn.config; print(jaxattn.__file__, "
        "jaxattn.config.find_file('ham_irv2'), 'irv2_sa' in jaxattn.list_models())",
    )
    assert listed.split() == [
        str(site / "jaxattn/__init__.py"),
        str(site / "jaxattn/configs/ham_irv2.py"),
        "True",
    ]
    assert (site / "jaxattn/py.typed").is_file()


def test_importing_and_creating_a_model_import_nothing_heavy(site, tmp_path):
    code = (
        "import sys, jaxattn; jaxattn.create_model('attention_cnn', 7); import jaxattn.train; "
        f"print([name for name in {HEAVY[:-1]} if name in sys.modules])"
    )
    assert python(site, tmp_path, "-c", code).split("\n")[0] == "[]"
