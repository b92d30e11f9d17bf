"""A run with a leak is flagged wherever its scores are shown."""

import json

import numpy as np
from absl import logging

from jaxattn import evaluate, report, train


def test_a_run_with_a_leak_says_so_everywhere(tiny_config, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    tiny_config.split.leak = "koefler"
    tiny_config.dataset.num_images = 35
    tiny_config.epochs = tiny_config.steps_per_epoch = 1
    folder = tmp_path / "run"
    assert train.train(tiny_config, folder)
    result = evaluate.evaluate(folder)
    written = json.loads((folder / "evaluation" / "test.json").read_text())
    assert written["leak"] == result["leak"] == "koefler"
    # 5 nv alone and 30 others six times over; a third of that is tested.
    assert written["images"] == np.ceil(0.33 * (5 + 30 * 6))
    assert 0.9 < written["measured_leak"]["image"] <= written["measured_leak"]["lesion"] <= 1
    assert len(said) == 2  # training and evaluation
    assert said[0].startswith("split.leak=koefler: images were copied before they were split")
    page = report.write(folder).read_text()
    assert "These scores do not estimate performance on new patients. split.leak=koefler" in page
