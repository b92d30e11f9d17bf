"""Files of ``torch.save`` against what PyTorch reads; files that nobody should load."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxattn.convert import torch_files
from jaxattn.errors import InputError


@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_wrote(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="it writes the files")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(layers.parameters())
    layers(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "view": matrix[1:, ::2], "transposed": matrix.T, "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3), "half": matrix.half(), "double": matrix.double(),
        "whole": torch.arange(3), "truth": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]), "parameter": layers[0].weight,
    }  # fmt: skip
    saved = {
        **tensors,
        "bfloat16": matrix.bfloat16(),
        "state_dict": layers.state_dict(),
        "optimizer": optimizer.state_dict(),
        "arguments": argparse.Namespace(rate=0.1),
        "epoch": 3,
    }
    path = tmp_path / "saved.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    found = torch_files.read(path)
    wanted = tensors | {"state " + name: each for name, each in layers.state_dict().items()}
    got = found | {"state " + name: each for name, each in found["state_dict"].items()}
    for name, tensor in wanted.items():
        array = tensor.detach().numpy()
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(found["bfloat16"].astype(np.float32), matrix)
    assert found["epoch"] == 3
    assert isinstance(found["arguments"], torch_files.Opaque)
    moments = found["optimizer"]["state"][0]["exp_avg"]
    np.testing.assert_array_equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])


class Call:
    """Pickles as a call, here of a function that would leave a trace."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(path, pickled, storages=()):
    """A file in the newer format."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in dict(storages).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def tensor(count, shape, strides, offset=0):
    """The pickle of ``{'w': tensor}``, written by hand as PyTorch writes it."""
    numbers = lambda each: b"(" + b"".join(b"I%d\n" % n for n in each) + b"t"  # noqa: E731
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage + b"I%d\ntQ" % count + b"I%d\n" % offset + numbers(shape) + numbers(strides)
        + b"I00\n}tRs."
    )  # fmt: skip


def test_a_tensor_written_by_hand(tmp_path):
    content = np.arange(6, dtype=np.float32).tobytes()
    path = zipped(tmp_path / "w.pth", tensor(6, (2, 2), (3, 1), 1), {"0": content})
    np.testing.assert_array_equal(torch_files.read(path)["w"], [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("count", "shape", "strides", "offset", "content"),
    [
        (6, (3, 2), (3, 1), 0, 24),  # ends behind its storage
        (6, (2, 2), (3, 1), 3, 24),
        (6, (2, 2), (-1, 1), 3, 24),  # runs backwards
        (6, (40_000, 40_000), (0, 0), 0, 24),  # would take 6 GB
        (6, (2, 3), (3, 1), 0, 20),  # a storage that was cut off
        (2**40, (2,), (1,), 0, 24),
    ],
)
def test_tensors_lie_in_their_storage(tmp_path, count, shape, strides, offset, content):
    pickled = tensor(count, shape, strides, offset)
    path = zipped(tmp_path / "w.pth", pickled, {"0": bytes(content)})
    with pytest.raises(InputError, match=r"w\.pth: expected a file that torch.save wrote"):
        torch_files.read(path)


def test_nothing_that_a_file_names_is_called(tmp_path):
    trace = tmp_path / "trace"
    value = {"w": Call(os.mkdir, str(trace)), "rate": 0.1}
    found = torch_files.read(zipped(tmp_path / "w.pth", pickle.dumps(value, protocol=2)))
    assert isinstance(found["w"], torch_files.Opaque)
    assert found["rate"] == 0.1
    assert not trace.exists()


def test_other_files_are_one_clear_error(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"", b"PK\x03\x04", b"\x80\x02K\x01.", b"text", pickle.dumps({"w": 1})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"w\.pth: expected a file that torch.save wrote"):
            torch_files.read(path)
