"""HDF5 files that reach outside themselves, or are larger than they look, are refused at once."""

import time
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from jaxattn.convert import keras_files
from jaxattn.errors import InputError

PLACE = "layers/dense/vars/0"
SECRET = np.arange(100, dtype=np.float32)


def external(file, folder):
    (folder / "secret").write_bytes(SECRET.tobytes())
    outside = [(str(folder / "secret"), 0, SECRET.nbytes)]
    file.create_dataset(PLACE, SECRET.shape, "f4", external=outside)


def virtual(file, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["data"] = SECRET
    layout = h5py.VirtualLayout(SECRET.shape, "f4")
    layout[:] = h5py.VirtualSource(folder / "secret.h5", "data", SECRET.shape)
    file.create_virtual_dataset(PLACE, layout)


def external_link(file, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["data"] = SECRET
    file[PLACE] = h5py.ExternalLink(str(folder / "secret.h5"), "data")


def soft_link(file, _):
    file["layers/dense/vars/1"] = SECRET
    file[PLACE] = h5py.SoftLink("/layers/dense/vars/1")


def twice(file, _):
    file[PLACE] = SECRET
    file["layers/dense/vars/1"] = file[PLACE]


def cycle(file, _):
    file[PLACE] = SECRET
    file["layers/dense/layers"] = file["layers"]


def declared(file, _):
    file.create_dataset(PLACE, (40_000, 40_000), "f4")


def declared_in_chunks(file, _):
    file.create_dataset(PLACE, (40_000, 40_000), "f4", chunks=(100, 100))


def bomb(file, _):
    chunk = (1000, 1000, 100)
    file.create_dataset(
        PLACE, chunk, "f4", chunks=chunk, compression="gzip", compression_opts=9, fillvalue=0
    )[:] = 0


def deep(file, _):
    for i in range(3):
        file.create_group(f"layers/l{i}" + "/layers/l" * 2000)


def attribute(file, _):
    file[PLACE] = SECRET
    file.attrs.create("layer_names", np.zeros(60_000, "S1"))


def nan(file, _):
    file[PLACE] = SECRET / np.nan


@pytest.mark.parametrize(
    ("craft", "message"),
    [
        (external, f"{PLACE} lies in another file"),
        (virtual, f"{PLACE} lies in another file"),
        (external_link, f"{PLACE} is a link to somewhere else"),
        (soft_link, f"{PLACE} is a link to somewhere else"),
        (twice, "is reached by two names"),
        (cycle, "is reached by two names"),
        (declared, r"declared with \(40000, 40000\), and 0 bytes are stored"),
        (declared_in_chunks, r"declared with \(40000, 40000\), and only a part is stored"),
        (bomb, r"it declares 400,000,000 bytes in "),
        (deep, "32 levels"),
        (attribute, "an attribute of / is declared with"),
        (nan, "dense: expected finite numbers, got NaN or infinity"),
    ],
)
@pytest.mark.parametrize("name", ["w.weights.h5", "w.keras"])
def test_what_a_file_does_not_hold_is_refused(tmp_path, craft, message, name):
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        craft(file, tmp_path)
    if name.endswith(".keras"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(path, "model.weights.h5")
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        keras_files.read(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 10
    assert peak < 20 * 2**20 + 3 * path.stat().st_size
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("length", [0, 2**64 - 16])
def test_a_damaged_heap_of_texts_is_refused_and_not_searched_for_ever(tmp_path, number, length):
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        file[PLACE] = SECRET
        file["layers/dense/vars"].attrs["name"] = "dense"
    whole = path.read_bytes()
    place = whole.index(b"GCOL") + 16  # the first object: its number, uses and length
    damaged = number.to_bytes(8, "little") + length.to_bytes(8, "little")
    path.write_bytes(whole[:place] + damaged + whole[place + 16 :])
    with pytest.raises(InputError, match=r"the heap at byte .* is damaged"):
        keras_files.read(path)


def test_an_archive_that_unpacks_too_far_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(30):
                member.write(bytes(10**7))
    with pytest.raises(InputError, match="it would unpack to 300,000,002 bytes"):
        keras_files.read(tmp_path / "w.keras")


def test_what_keras_stores_compressed_is_read(tmp_path):
    """A chunked, compressed data set is as good as a contiguous one."""
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        file.create_dataset(
            PLACE, data=SECRET.reshape(10, 10), chunks=(3, 4), compression="gzip", shuffle=True
        )
    (layer,) = keras_files.read(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(layer.arrays[0], SECRET.reshape(10, 10))
