"""Against torchvision and timm, layer by layer: random weights, random batch statistics."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.convert import torch as convert
from jaxattn.convert.torch import from_state_dict, load
from jaxattn.errors import InputError
from jaxattn.models import registry

torch = pytest.importorskip("torch", reason="the networks compared with are PyTorch's")

from references import torch_models  # noqa: E402 it imports PyTorch


@functools.cache
def torchvision():
    return torch_models.torchvision


def timm(name):
    torchvision()
    return pytest.importorskip("timm", reason="its networks are compared with").create_model(name)


NETWORKS = {
    "torch_densenet121": lambda: torchvision().models.densenet121(num_classes=5),
    "torch_efficientnet_lite0": lambda: timm("tf_efficientnet_lite0"),
    "torch_efficientnet_lite0_timm": lambda: timm("efficientnet_lite0"),
    "torch_efficientnet_lite3": lambda: timm("tf_efficientnet_lite3"),
    "torch_inception_v3": lambda: torchvision().models.inception_v3(
        num_classes=5, init_weights=False, transform_input=False
    ),
    "torch_resnet34": lambda: torchvision().models.resnet34(num_classes=5),
    "torch_resnet50": lambda: torchvision().models.resnet50(num_classes=5),
    "torch_se_resnext50": lambda: timm("seresnext50_32x4d"),
    "torch_se_resnext50_cadene": lambda: timm("legacy_seresnext50_32x4d"),
    "torch_vgg16_bn": lambda: torchvision().models.vgg16_bn().features,
}
SIZES = {"torch_inception_v3": 107, "torch_vgg16_bn": 32}

#: Our endpoints by the modules of PyTorch whose output they are.
STEMS = {
    "torch_densenet121": {
        "features.relu0": "conv1", "features.pool0": "pool1", "features.norm5": "bn",
        "features.transition1": "pool2", "features.transition2": "pool3",
        "features.transition3": "pool4", "classifier": "logits",
    },
    "torch_inception_v3": {
        "Conv2d_1a_3x3": "conv_1a", "Conv2d_2a_3x3": "conv_2a", "Conv2d_2b_3x3": "conv_2b",
        "maxpool1": "pool_3a", "Conv2d_3b_1x1": "conv_3b", "Conv2d_4a_3x3": "conv_4a",
        "maxpool2": "pool_5a", "fc": "logits",
        "Mixed_5b": "mixed0", "Mixed_5c": "mixed1", "Mixed_5d": "mixed2", "Mixed_6a": "mixed3",
        "Mixed_6b": "mixed4", "Mixed_6c": "mixed5", "Mixed_6d": "mixed6", "Mixed_6e": "mixed7",
        "Mixed_7a": "mixed8", "Mixed_7b": "mixed9", "Mixed_7c": "mixed10",
    },
    "torch_resnet34": {"relu": "conv1", "maxpool": "pool1", "fc": "logits"},
    "torch_resnet50": {"relu": "conv1", "maxpool": "pool1", "fc": "logits"},
    "torch_se_resnext50": {"act1": "conv1", "maxpool": "pool1", "fc": "logits"},
    "torch_se_resnext50_cadene": {
        "layer0.relu1": "conv1", "pool0": "pool1", "last_linear": "logits",
    },
    "torch_vgg16_bn": {
        str(i): name for i, name in {
            2: "conv1_1", 5: "conv1_2", 6: "pool1", 9: "conv2_1", 13: "pool2", 22: "conv3_3",
            23: "pool3", 29: "conv4_2", 33: "pool4", 42: "conv5_3", 43: "pool5",
        }.items()
    },
}  # fmt: skip

LITE = {"bn1": "stem", "bn2": "head", "global_pool": "global_pool", "classifier": "logits"}


def endpoint(name, module):
    """Our endpoint of a module's name, if there is one."""
    if block := re.fullmatch(r"layer(\d)\.(\d+)", module):
        return f"conv{int(block[1]) + 1}_block{int(block[2]) + 1}"
    if layer := re.fullmatch(r"features\.denseblock(\d)\.denselayer(\d+)", module):
        return f"conv{int(layer[1]) + 1}_block{layer[2]}"
    if block := re.fullmatch(r"blocks\.(\d)\.(\d+)", module):
        return f"block{int(block[1]) + 1}_{int(block[2]) + 1}"
    return STEMS.get(name, LITE).get(module)


@functools.cache
def randomised(name):
    """A network whose batch statistics are not those that it starts with, for evaluation."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    return network.eval()


def state_dict(name):
    state = {key: tensor.numpy() for key, tensor in randomised(name).state_dict().items()}
    prefix = "features." if name == "torch_vgg16_bn" else ""
    return {prefix + key: array for key, array in state.items()}


def theirs(name, images):
    """Outputs of the modules that have a counterpart, by our endpoints' names, NHWC."""
    found = {}

    def keep(at, module, inputs, output):
        array = output.detach().numpy().copy()  # what follows may work in place
        found[at] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

    network = randomised(name)
    hooks = [
        module.register_forward_hook(functools.partial(keep, endpoint(name, path)))
        for path, module in network.named_modules()
        if endpoint(name, path)
    ]
    with torch.no_grad():
        network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_endpoint_is_pytorchs(name):
    size = SIZES.get(name, 64)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    variables = from_state_dict(name, state_dict(name))
    classes = variables["params"]["backbone"].get("logits", {"bias": None})["bias"]
    backbone = registry.create(name, 1).backbone.make(
        num_classes=None if classes is None else len(classes)
    )
    own = {kind: tree["backbone"] for kind, tree in variables.items()}
    _, endpoints = jax.jit(functools.partial(backbone.apply, train=False))(own, images)
    wanted = theirs(name, images)
    assert len(wanted) > 10
    for at, array in wanted.items():
        got = np.asarray(endpoints[at])
        if name == "torch_densenet121" and "_block" in at:
            got = got[..., -array.shape[-1] :]  # PyTorch's layer returns its new channels alone
        scale = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(got / scale, array / scale, atol=1e-4, err_msg=at)


def test_gesserts_densenet_ends_before_the_relu():
    """``bn`` is PyTorch's ``features``, which holds negative numbers that a ReLU would not."""
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        features = randomised("torch_densenet121").features(pixels).mean((2, 3)).numpy()
    model = registry.create("gessert2019", 5, backbone="torch_densenet121", endpoint="bn")
    variables = from_state_dict("torch_densenet121", state_dict("torch_densenet121"))
    params = variables["params"]["backbone"]
    params, logits = {k: v for k, v in params.items() if k != "logits"}, params["logits"]
    ours, _ = model.apply(
        {"params": {"backbone": params, "logits": logits}, "batch_stats": variables["batch_stats"]},
        jnp.asarray(images), train=False,
    )  # fmt: skip
    np.testing.assert_allclose(ours, features @ logits["kernel"] + logits["bias"], atol=1e-4)


def test_files_of_both_kinds_and_old_names(tmp_path):
    from safetensors.numpy import save_file

    state = state_dict("torch_densenet121")
    plain = jax.tree.map(np.asarray, from_state_dict("torch_densenet121", state))
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in state.items()
    }
    assert set(old) != set(state)
    save_file({f"module.{k}": np.asarray(v) for k, v in old.items()}, tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}},
        tmp_path / "w.pth",
    )
    for file in ("w.safetensors", "w.pth"):
        loaded = load(tmp_path / file, "torch_densenet121")
        assert jax.tree.all(jax.tree.map(np.array_equal, plain, loaded))


def test_every_difference_is_named():
    state = state_dict("torch_resnet34")
    del state["layer3.0.downsample.0.weight"]
    state["layer9.weight"] = np.zeros(3, np.float32)
    state["bn1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(InputError) as error:
        from_state_dict("torch_resnet34", state)
    for part in (
        "missing: layer3.0.downsample.0.weight for params/backbone/conv4_block1/shortcut/conv",
        "left over: layer9.weight",
        "of another shape: bn1.bias 3, expected 64",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        (
            "torch_se_resnext50_cadene",
            "torch_se_resnext50",
            "expected torch_se_resnext50_cadene for",
        ),
        ("torch_resnet34", "keras_densenet121", "--model: expected a model of PyTorch's"),
        ("torch_resnet34", "attention_cnn", "--model: expected a model of PyTorch's"),
    ],
)
def test_the_wrong_model(name, model, message):
    with pytest.raises(InputError, match=message):
        from_state_dict(model, state_dict(name))


def test_wrong_files(tmp_path):
    for name, content, message in (
        ("none.pth", None, "no such file"),
        ("bad.safetensors", b"abc", "expected a .safetensors file, got"),
        ("bad.pth", b"abc", "bad.pth: expected a file that torch.save wrote"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(tmp_path / name, "torch_resnet34")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="expected a state dict, got list"):
        load(tmp_path / "list.pth", "torch_resnet34")


def test_without_a_classifier_there_is_a_backbone():
    state = {k: v for k, v in state_dict("torch_resnet34").items() if not k.startswith("fc.")}
    assert "logits" not in from_state_dict("torch_resnet34", state)["params"]["backbone"]


def test_wrappers_and_prefixes_in_any_nesting(tmp_path):
    """What DataParallel, torch.compile, Lightning and training loops put around a state dict."""
    state = state_dict("torch_resnet34")
    plain = jax.tree.map(np.asarray, from_state_dict("torch_resnet34", state))
    wrapped = {
        f"module._orig_mod.model.{key}": torch.nn.Parameter(
            torch.from_numpy(np.array(array)), requires_grad=True
        )
        for key, array in state.items()
        if "num_batches" not in key
    }
    for around in (("model_state_dict",), ("model",), ("net", "state_dict")):
        content = wrapped
        for key in around:
            content = {key: content, "epoch": 3, "optimizer": {"lr": 0.1}}
        torch.save(content, tmp_path / "w.pth")
        loaded = load(tmp_path / "w.pth", "torch_resnet34")
        assert jax.tree.all(jax.tree.map(np.array_equal, plain, loaded))
    torch.save({"model": wrapped, "net": wrapped}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: expected one state dict, got model and net"):
        load(tmp_path / "w.pth", "torch_resnet34")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.int8), r"expected floats, got conv1\.weight int8"),
        (lambda a: a.astype(np.complex64), r"expected floats, got conv1\.weight complex64"),
        (lambda a: np.where(a == a.max(), np.nan, a), r"NaN or infinity in conv1\.weight"),
        (lambda a: a * np.float32(np.inf), r"NaN or infinity in conv1\.weight"),
    ],
)
def test_numbers_that_are_no_weights(change, message):
    state = dict(state_dict("torch_resnet34"))
    with np.errstate(invalid="ignore"):
        state["conv1.weight"] = change(state["conv1.weight"])
    with pytest.raises(InputError, match=message):
        from_state_dict("torch_resnet34", state)


def test_rounding_is_said(caplog):
    state = dict(state_dict("torch_resnet34"))
    state["conv1.weight"] = state["conv1.weight"].astype(np.float64)
    with caplog.at_level("WARNING"):
        from_state_dict("torch_resnet34", state)
    assert "rounded" not in caplog.text  # float32 holds them
    state["conv1.weight"] = state["conv1.weight"] + 1e-12
    with caplog.at_level("WARNING"):
        from_state_dict("torch_resnet34", state)
    assert "rounded to float32: conv1.weight" in caplog.text


def test_an_error_is_short_and_names_the_likely_model():
    with pytest.raises(InputError, match="got the names of torch_densenet121") as error:
        from_state_dict("torch_resnet34", state_dict("torch_densenet121"))
    assert len(str(error.value)) < 2500
    assert re.search(r"and \d+ more", str(error.value))


@pytest.mark.parametrize(
    ("theirs_", "model"),
    [
        ("seresnext50_32x4d", "torch_se_resnext50_cadene"),
        ("legacy_seresnext50_32x4d", "torch_se_resnext50"),
    ],
)
def test_the_two_se_resnext50_are_told_apart(theirs_, model):
    """Their arrays have the same shapes; converted as the other, outputs are slightly wrong."""
    with torch.device("meta"):
        names = timm(theirs_).state_dict()
    state = {f"module.{name}": np.zeros(1, np.float32) for name in names}
    with pytest.raises(InputError, match="expected torch_se_resnext50.* pool pads differently"):
        from_state_dict(model, state)


def test_timms_vgg_has_convolutions_for_dense_layers():
    """Names and numbers of weights are torchvision's, which keep the order C, H, W."""
    with torch.device("meta"):
        ours = torchvision().models.vgg16_bn().state_dict()
        state = timm("vgg16_bn").state_dict()
    zero = np.float32(0)
    state = {name: np.broadcast_to(zero, tuple(each.shape)) for name, each in state.items()}
    renamed = convert._renamed(state)
    wanted = {name: each for name, each in ours.items() if "num_batches" not in name}
    assert set(renamed) == set(wanted)
    for name, array in renamed.items():
        assert (len(array), array.size) == (len(wanted[name]), wanted[name].numel())
    kernel = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)
    np.testing.assert_array_equal(convert._as_ours(kernel, 2), kernel.reshape(4, -1).T)
