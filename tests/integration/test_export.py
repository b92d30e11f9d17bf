"""Exported files in a process that has nothing of this package."""

import csv
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxattn import evaluate, export, run_dir, train
from jaxattn.config import base
from jaxattn.export import __main__ as command_line
from jaxattn.export import stablehlo
from jaxattn.models import registry
from jaxattn.models.attention import ATTENTION
from jaxattn.run import load_run
from tests.integration.test_all_models import SMALL
from tests.runs import untrained

#: Runs a script that can import jax, flatbuffers, NumPy and Pillow, and what jax needs, alone.
ALONE = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    refused = {"jaxattn", "flax", "optax", "orbax", "ml_collections", "safetensors", "jaxtyping"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.refused:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not Refuse.refused & {name.split(".")[0] for name in sys.modules}
"""

BATCHES = """
import sys, numpy as np
from pathlib import Path
from jax import export

folder = Path(sys.argv[1])
model = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
images = np.load(folder.parent / "images.npy")
found = {}
for n in (1, 17):
    probabilities, maps = model.call(images[:n])
    found |= {f"{n}/probabilities": probabilities} | {f"{n}/{k}": v for k, v in maps.items()}
np.savez(folder.parent / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    """A trained and evaluated run with Grad-CAM, and its exported files."""
    config = make_config()
    config.epochs = 1
    config.evaluation.update(grad_cam="Conv_0", tta=8)
    folder = tmp_path_factory.mktemp("exported")
    assert train.train(config, folder / "run")
    evaluate.evaluate(folder / "run")
    export.write(load_run(folder / "run"), folder / "out")
    return folder


def alone(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *map(str, arguments)],
        cwd=folder, env={"JAX_PLATFORMS": "cpu"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_equal_outputs_without_the_package(trained):
    run = load_run(trained / "run", explain=True)
    images = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), np.uint8)
    np.save(trained / "images.npy", images)
    (trained / "batches.py").write_text(BATCHES)
    alone(trained, "batches.py", trained / "out")
    found = np.load(trained / "found.npz")
    for count in (1, 17):
        probabilities, maps = run.predict(list(images[:count]))
        np.testing.assert_allclose(found[f"{count}/probabilities"], probabilities, atol=1e-5)
        assert set(maps) == {"attention", "grad_cam"}
        for name, each in maps.items():
            np.testing.assert_allclose(found[f"{count}/{name}"], each, atol=1e-5)


def test_the_script_that_is_shipped(trained):
    """It reads files and prints what `Run.predict` finds."""
    paths = []
    for i, size in enumerate([(600, 450), (300, 400)]):
        paths.append(trained / f"photo {i}.jpg")
        pixels = np.random.default_rng(i).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(paths[-1])
    printed = alone(trained, trained / "out" / "predict.py", *paths)
    probabilities, _ = load_run(trained / "run").predict(paths)
    found = re.findall(r"=(\d\.\d{4})", printed)
    np.testing.assert_allclose(np.array(found, float), probabilities.ravel(), atol=6e-5)
    assert [line.split(".jpg")[0] for line in printed.splitlines()] == [
        str(path)[: -len(".jpg")] for path in paths
    ]


def test_the_card_counts_what_the_run_counted(trained):
    card = json.loads((trained / "out" / "model_card.json").read_text())
    with (trained / "run" / run_dir.SPLIT).open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (trained / "run" / "evaluation" / "test_predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    for part, counts in card["split"]["parts"].items():
        lesions = [row["lesion_id"] for row in rows if row["split"] == part]
        assert counts == {"images": len(lesions), "lesions": len(set(lesions))}
    assert sum(card["classes"].values()) == card["split"]["parts"]["train"]["images"]
    right = np.mean([row["label"] == row["prediction"] for row in predicted])
    assert card["evaluation"]["metrics"]["accuracy"] == pytest.approx(right)
    assert card["evaluation"]["measured_leak"] == {"lesion": 0, "image": 0}
    text = (trained / "out" / "README.md").read_text()
    low, high = card["evaluation"]["intervals"]["accuracy"]
    assert low <= right <= high
    assert f"| accuracy | {right:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert f"In brackets: {card['evaluation']['intervals']['method']}." in text
    assert "`predict.py`" in text


def test_the_command_line(trained, command, tmp_path):
    run, out = f"--run={trained / 'run'}", f"--out={tmp_path / 'new' / 'out'}"
    status, printed, _ = command(command_line, run, out, "--format=safetensors,card")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "README.md", "model.safetensors", "model_card.json"
    ]  # fmt: skip
    assert "model.safetensors" in printed
    status, _, err = command(command_line, run, out)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "which exists" in err
    status, _, err = command(command_line, f"--run={tmp_path}", f"--out={tmp_path / 'x'}")
    assert (status, len(err.splitlines())) == (2, 1)
    shutil.rmtree(tmp_path / "new")
    status, _, err = command(command_line, run, out, "--format=keras")
    assert (status, len(err.splitlines())) == (2, 1)  # the tests' model is not one of Keras'
    assert not (tmp_path / "new" / "out").exists()


def crops(count):
    return {"strategy": "ordered", "size": 32, "count": count}


def small(name, size, **options):
    """A published model with fewer blocks, as in test_all_models: its config, and itself."""
    config = base()
    config.model = {"name": name}
    config.dataset.image_size = size
    entry = registry.find(name)
    attributes = dict(entry.fixed) | SMALL.get(name, ({},))[0] | options
    return config, entry.module(num_classes=3, **attributes)


def attended(attention):
    at = "conv3_block1" if attention.endswith("block") else "conv2_block1"
    options = {"crops": 1} if attention == "patch" else {}
    if attention == "se":
        options = {"reduction": 8}
    return small(
        "torch_resnet34", 64, attention=attention, attention_at=at, attention_options=options
    )


MODELS = {
    **{f"attention {name}": (attended, name) for name in sorted(ATTENTION)},
    "datta2021": (small, "irv2_sa", 139),
    "koefler2023": (small, "koefler_cnn_sa", 75),
    "yan2019": (small, "attnmelcnn", 32),
    "gessert2019": (small, "gessert2019", 64),
    "grouped convolutions": (small, "torch_se_resnext50", 64),
    "depthwise convolutions": (small, "torch_efficientnet_lite0", 32),
    "attention_cnn": (small, "attention_cnn", 32),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_lowers_for_every_platform(tmp_path, name):
    make, *arguments = MODELS[name]
    config, model = make(*arguments)
    if name == "gessert2019":
        config.crops.update(crops(4))
        model = model.clone(attention=("initial", "end"), head="gru", units=8)
    run = untrained(tmp_path / "run", config, model=model)
    exported = stablehlo.export(run)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape[0]) == "batch"
    module = exported.mlir_module()
    called = set(re.findall(r"custom_call\s+@(\w+)", module)) | set(
        re.findall(r'call_target_name = "(\w+)"', module)
    )
    # JAX itself replaces it by a check of the batch's size, before anything is compiled.
    assert called <= {"shape_assertion"}
    again = jax.export.deserialize(exported.serialize())
    assert str(again.out_avals) == str(exported.out_avals)
