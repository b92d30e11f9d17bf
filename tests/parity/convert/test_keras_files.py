import pickle
import re
import zipfile

import h5py
import numpy as np
import pytest

from jaxattn.convert import keras_files
from jaxattn.convert.keras_files import Stored
from jaxattn.errors import InputError

keras = pytest.importorskip("keras")
# Keras' own, with a newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def save(model, path):
    """Saves the whole model, or its weights alone where the name says so."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def by_kind(layers):
    """The arrays of layers of one kind, in their order."""
    kinds = {}
    for arrays in layers:
        kinds.setdefault(arrays[0].ndim, []).append(arrays)
    return kinds


def same(read, wanted):
    """Whether layers of each kind hold the same weights in the same order, bit for bit."""
    one, other = by_kind([layer.arrays for layer in read]), by_kind(wanted)
    assert {k: len(v) for k, v in one.items()} == {k: len(v) for k, v in other.items()}
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for kind in other
        for ours, theirs in zip(one[kind], other[kind], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def weights(model):
    """The weights of each layer of a model, those of models inside it included."""
    return [
        arrays
        for layer in model.layers
        for arrays in (weights(layer) if hasattr(layer, "layers") else [layer.get_weights()])
        if arrays
    ]


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.weights.h5", "m.keras"])
@pytest.mark.parametrize("model", ["plain", "attending"])
def test_what_keras_wrote(small, tmp_path, model, name):
    model = small(model)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # the file holds its state too
    path = save(model, tmp_path / name)
    read = keras_files.read(path)
    assert same(read, weights(model))
    assert {layer.name for layer in read} == {layer.name for layer in model.layers if layer.weights}


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
@pytest.mark.parametrize("frozen", [0, 12, 1000])
def test_a_model_inside_a_model(small, tmp_path, name, frozen):
    base = small("plain")
    base = keras.Model(base.input, base.get_layer("relu").output)
    for layer in base.layers[:frozen]:
        layer.trainable = False
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input(base.input.shape[1:]), base, pool, keras.layers.Dense(5)])
    assert same(keras_files.read(save(model, tmp_path / name)), weights(model))


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
def test_a_model_whose_middle_is_frozen(small, tmp_path, name):
    """Legacy files have its weights last, where blocks of one shape would be exchanged."""
    base = small("plain")
    for layer in base.layers[8:20]:
        layer.trainable = False
    model = keras.Sequential([keras.Input(base.input.shape[1:]), base])
    path = save(model, tmp_path / name)
    if name != "m.h5":
        assert same(keras_files.read(path), weights(model))
        return
    with pytest.raises(InputError, match="m.h5: expected frozen layers at the beginning of"):
        keras_files.read(path)


def tensorflow_file(path, layers, chunks=1, whole=False):
    """A file as TensorFlow's Keras wrote them: names as bytes, weights as layer/weight:0."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.3.0"
        names = np.array([name.encode() for name, _ in layers])
        for i, part in enumerate(np.array_split(names, chunks)):
            root.attrs[f"layer_names{i}" if chunks > 1 else "layer_names"] = part
        for name, arrays in layers:
            group = root.create_group(name)
            kinds = ("gamma", "beta", "moving_mean", "moving_variance")
            kinds = kinds if len(arrays) == 4 else ("kernel_conv3d", "bias_conv3d")
            inner = [f"{name}/{kind}:0" for kind in kinds[: len(arrays)]]
            group.attrs["weight_names"] = np.array([text.encode() for text in inner], "S")
            for key, array in zip(inner, arrays, strict=True):
                group[key] = array
        if whole:
            file.attrs["model_config"] = b"{}"
            file.create_group("optimizer_weights")["Adam/iterations:0"] = np.int64(3)


@pytest.mark.parametrize("chunks", [1, 12])
@pytest.mark.parametrize("whole", [False, True])
def test_what_tensorflow_wrote(small, layers_of, tmp_path, chunks, whole):
    model = small("attending")
    layers = [(layer.name, layer.get_weights()) for layer in model.layers]  # weightless ones too
    tensorflow_file(tmp_path / "m.h5", layers, chunks, whole)
    read = keras_files.read(tmp_path / "m.h5")
    assert [layer.name for layer in read] == [name for name, _ in layers_of(model)]
    assert same(read, weights(model))


def test_what_keras_2_13_wrote(tmp_path):
    kernels = [np.full((1, 1, 2, 2), i, np.float32) for i in range(12)]
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for i, kernel in enumerate(kernels):
            name = f"conv2d_{i}" if i else "conv2d"
            file[f"_layer_checkpoint_dependencies/{name}/vars/0"] = kernel
        file["_layer_checkpoint_dependencies/dropout/seed_generator/vars/0"] = np.arange(2)
        file["optimizer/vars/0"] = np.float32(1)
    read = keras_files.read(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal([layer.arrays[0].flat[0] for layer in read], range(12))


def zipped(**members):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name.replace("_", "."), content)

    return write


def hdf5(write):
    def make(path):
        with h5py.File(path, "w") as file:
            write(file)

    return make


def integers(file):
    file["layers/dense/vars/0"] = np.zeros((2, 2), np.int64)


WRONG = {
    "missing.h5": (lambda path: None, "no such file"),
    "folder.h5": (lambda path: path.mkdir(), "no such file"),
    "empty.h5": (lambda path: path.touch(), "neither HDF5 nor a zip"),
    "text.h5": (lambda path: path.write_text("layer_names"), "neither HDF5 nor a zip"),
    "pickle.h5": (
        lambda path: path.write_bytes(pickle.dumps({"kernel": [1.0]})),
        "neither HDF5 nor a zip",
    ),
    "zip.keras": (zipped(readme_txt="x"), "a zip without config.json and model.weights.h5"),
    "halfzip.keras": (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "damaged"),
    "noh5.keras": (zipped(config_json="{}", model_weights_h5="x"), "damaged"),
    "data.h5": (hdf5(lambda file: file.create_dataset("images", data=[1.0])), "without layers"),
    "listed.h5": (hdf5(lambda file: file.attrs.update(layer_names=[b"conv"])), "damaged"),
    "array.h5": (hdf5(lambda file: file.create_dataset("layers", data=[1.0])), "damaged"),
    "integers.h5": (hdf5(integers), "dense: expected floats, got int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_one_sentence(tmp_path, name):
    write, message = WRONG[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}[:,] .*{message}") as error:
        keras_files.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_files(small, tmp_path, name, share):
    whole = save(small("plain"), tmp_path / name)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="damaged"):
        keras_files.read(whole)


def test_no_link_is_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["weights"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "weights")
    with pytest.raises(InputError, match="layers/dense/vars/0 is a link"):
        keras_files.read(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("name", ["m.npz", "m.keras", "m"])
def test_files_that_cannot_be_written(tmp_path, name):
    with pytest.raises(InputError, match=r"a name ending in \.weights\.h5, \.h5 or \.hdf5, got"):
        keras_files.write(tmp_path / name, [])


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "m.h5").write_text("precious")
    layers = [Stored("dense", [np.zeros((1, 1), np.float32)], "dense", ("kernel",))]
    with pytest.raises(InputError, match="expected a new file, got one that is there already"):
        keras_files.write(tmp_path / "m.h5", layers)
    assert (tmp_path / "m.h5").read_text() == "precious"
