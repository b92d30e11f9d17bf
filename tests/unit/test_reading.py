"""Files from elsewhere: one error for whatever is wrong; nothing is allocated that is not there."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxattn.errors import InputError, invalid
from jaxattn.reading import Node, read_csv, read_json, read_npz, reading


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(array, **changes):
    """The content of a .npy file, with another header."""
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


def test_what_numpy_saved_is_read(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array(["x", "yz"]), "c": np.float32(3)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays, order=np.asfortranarray(arrays["a"]))
        found = read_npz(tmp_path / "a.npz")
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found["order"], arrays["a"])


@pytest.mark.parametrize("shape", [(40_000, 40_000), (2**62,), (-1,), (7,), (2**31, 2**31, 2**31)])
def test_a_header_must_fit_its_array(tmp_path, shape):
    npz(tmp_path / "a.npz", a=npy(np.zeros(8), shape=shape))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.npz: expected a NumPy archive"):
        read_npz(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"text", b"\x93NUMPY\x01\x00", b"PK\x05\x06" + bytes(18)],
)
def test_other_files_are_no_archives(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    if content.startswith(b"PK\x05"):
        assert read_npz(tmp_path / "a.npz") == {}
        return
    with pytest.raises(InputError, match=r"a\.npz: expected a NumPy archive \(\.npz\), got a dama"):
        read_npz(tmp_path / "a.npz")


def test_objects_and_members_that_are_no_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"a\.npy: Python objects"):
        read_npz(tmp_path / "a.npz")
    npz(tmp_path / "a.npz", a=b"text")
    with pytest.raises(InputError, match=r"a\.npz: expected"):
        read_npz(tmp_path / "a.npz")


def test_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(InputError, match=r"a\.json: expected JSON, got .*'c' is named twice"):
        read_json(path)
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(InputError, match=r"a\.csv: expected .*a column is there twice"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "content", ["a,b\n1\n", "a,b\n1,2,3\n", 'a,b\n"1,2\n', "a,b\n" + "x" * 200_000]
)
def test_csv_rows_are_whole(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=r"a\.csv: expected the CSV that the run wrote"):
        read_csv(tmp_path / "a.csv")


def test_errors_name_the_file_and_the_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": {"b": [1, "x", -2.5]}, "big": 10**400}))
    items = read_json(path)["a"]["b"].items()
    assert items[0].whole() == 1
    assert (items[1].text(), items[2].number()) == ("x", -2.5)
    for act, message in (
        (lambda: items[1].number(), r"a\.json, a\.b\[1\]: expected a number, got 'x'$"),
        (lambda: items[2].number(0, 1), r"a\.b\[2\]: expected a number in \[0, 1\], got -2.5$"),
        (lambda: items[2].whole(), r"a\.b\[2\]: expected a whole number, got -2.5$"),
        (lambda: items[1].text(("y",)), r"a\.b\[1\]: expected one of y, got 'x'$"),
        (
            lambda: read_json(path)["c"].object(),
            r"a\.json, c: expected a JSON object, got nothing$",
        ),
        (lambda: read_json(path)["big"].whole(), r"big: expected a whole number in .*, got 1000"),
        (lambda: Node(path, "", [True]).items()[0].number(), r"expected a number, got True$"),
    ):
        with pytest.raises(InputError, match=message) as error:
            act()
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (SystemError("first\nsecond"), r"^x\.bin: expected y, got a damaged file \(first\)$"),
        (KeyError(), r"^x\.bin: expected y, got a damaged file \(KeyError\)$"),
        (PermissionError(13, "Denied"), r"^x\.bin: expected y, got a file .* read \(Denied\)$"),
        (InputError("field: expected y, got z"), r"^x\.bin, field: expected y, got z$"),
        (InputError("x.bin, field: expected y, got z"), r"^x\.bin, field: expected y, got z$"),
    ],
)
def test_whatever_is_raised_becomes_one_error_that_names_the_file_once(raised, message):
    with pytest.raises(InputError, match=message), reading("x.bin", "y"):
        raise raised


def test_an_error_stays_short_whatever_a_file_holds():
    text = str(invalid("a.json: " + "é" * 5000 + "key", "a name", "x" * 400))
    assert len(text) == 1400
    assert text.startswith("a.json: é")
    assert text.endswith("key: expected a name, got " + "x" * 400)


def test_a_zip_member_larger_than_its_archive_is_refused(tmp_path):
    """Python would allocate what the directory at the archive's end declares."""
    path = tmp_path / "split.npz"
    np.savez(path, test=np.arange(5))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = (2**31 - 1).to_bytes(4, "little")  # its packed size
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"split\.npz: .* declared larger than the archive"):
        read_npz(path)
