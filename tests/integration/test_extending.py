"""The worked example of docs/extending.md: one of each kind, from outside the package."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxattn
from jaxattn import evaluate, runtime, train
from jaxattn.data.load import DATASETS
from jaxattn.data.samplers import SAMPLERS
from jaxattn.losses import LOSSES
from jaxattn.models.attention import ATTENTION
from jaxattn.models.backbones import BACKBONES

PAGE = "docs/extending.md"


@pytest.fixture
def my_lab(pytestconfig, tmp_path, monkeypatch):
    """The page's Python blocks as an importable module; what they register is taken back."""
    page = (pytestconfig.rootpath / PAGE).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_lab.py").write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registries = (ATTENTION, BACKBONES, LOSSES, SAMPLERS, DATASETS)
    before = [dict(registry) for registry in registries]
    yield "my_lab"
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def write_photographs(folder: Path) -> None:
    """Two classes of twelve lesions, bright and dark, with two images each."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for lesion in range(12):
            for number in range(2):
                pixels = rng.integers(level - 40, level + 40, (48, 48, 3), np.uint8)
                path = folder / name / f"{name}{lesion}_{number}.jpg"
                Image.fromarray(pixels).save(path)


@pytest.fixture
def in_this_process(monkeypatch):
    """Leaves alone what a command would change for the whole process."""
    monkeypatch.setattr(runtime, "setup", lambda *_: None)


@pytest.mark.usefixtures("in_this_process")
def test_one_of_each_kind_from_outside_trains_and_evaluates(my_lab, command, tmp_path):
    write_photographs(tmp_path / "photographs")
    run = tmp_path / "run"
    status, _, err = command(
        train,
        f"--plugin={my_lab}",
        "--config=quickstart",
        f"--workdir={run}",
        "--config.dataset.name=folder",
        f"--config.dataset.data_dir={tmp_path / 'photographs'}",
        "--config.split.test=0.25",
        "--config.split.validation=0.25",
        "--config.model.name=plain",
        "--config.model.attention=spatial",
        "--config.model.attention_at=conv2",
        "--config.model.attention_options={'size': 5}",
        "--config.loss.name=logit_adjusted",
        "--config.loss.options.tau=0.5",
        "--config.sampler.name=subset",
        "--config.sampler.options.share=0.75",
        "--config.batch_size=8",
        "--config.evaluation.batch_size=8",
        "--config.steps_per_epoch=2",
        "--config.epochs=1",
    )
    assert status == 0, err
    assert (run / "report.html").is_file()
    status, _, err = command(evaluate, f"--plugin={my_lab}", f"--run={run}", "--split=validation")
    assert status == 0, err
    loaded = jaxattn.load_run(run)
    assert loaded.class_names == ("bright", "dark")
    probabilities, maps = loaded.predict([np.zeros((64, 64, 3), np.uint8)])
    assert probabilities.shape == (1, 2)
    assert maps["spatial"].shape == (1, 1, 16, 16)
