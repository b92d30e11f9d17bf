"""A prepared folder is data: nothing in it is imported, and what it says is checked."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import examples, reader, schema, writer
from jaxattn.errors import InputError

#: Says that it was imported.
CODE = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"


@pytest.fixture
def out(tmp_path, dataverse):
    writer.write(ham10000.read(dataverse), tmp_path / "out")
    return tmp_path / "out"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_tfds_wrote_is_what_is_read(out):
    found = schema.read(out)
    assert (found.name, found.class_names) == ("ham10000", ham10000.CLASS_NAMES)
    assert [path.name for path, _ in found.shards] == [path.name for path in out.glob("*_record*")]
    assert len(found) == 8


def test_no_code_of_a_folder_runs(out, pytestconfig):
    """Neither a class that it names nor an optional package of a library that lies in it."""
    for name in ("extra", "tensorflow", "waymo_open_dataset", "jax_plugins", "lz4", "pandas"):
        (out / f"{name}.py").write_text(CODE)
    edit(out / "features.json", lambda root: root.update(pythonClassName="extra.Extra"))
    command = ["-m", "jaxattn.train", "--config=quickstart", "--workdir=run"]
    command += ["--config.dataset.name=prepared", "--config.dataset.data_dir=."]
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=out,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
    )
    assert not list(out.glob("*.ran")), ended.stderr
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: features.json, pythonClassName: expected one of "
        f"{', '.join(sorted(schema.CONNECTORS))}, got 'extra.Extra'\n"
    )


@pytest.mark.parametrize("name", ["extra.Extra", "os", "tensorflow_datasets.core.features.audio"])
def test_only_known_connectors_are_read(out, monkeypatch, name):
    (out / "extra.py").write_text(CODE)
    monkeypatch.chdir(out)
    monkeypatch.syspath_prepend(str(out))

    def change(root):
        root["featuresDict"]["features"]["age"]["pythonClassName"] = name

    edit(out / "features.json", change)
    with pytest.raises(InputError, match=r"features\.json, featuresDict\.features\.age\.pythonCl"):
        reader.load(out)
    assert not list(out.glob("*.ran"))


FEATURES = {
    "no feature": lambda root: root["featuresDict"]["features"].pop("label"),
    "another kind": lambda root: root["featuresDict"]["features"].update(
        label=root["featuresDict"]["features"]["sex"]
    ),
    "no class": lambda root: root["featuresDict"]["features"]["sex"].pop("pythonClassName"),
    "no description": lambda root: root["featuresDict"]["features"]["sex"].pop("text"),
    "no dict": lambda root: root.update(featuresDict=[1]),
    "no count": lambda root: root["featuresDict"]["features"]["label"].update(classLabel={}),
    "huge count": lambda root: root["featuresDict"]["features"]["label"].update(
        classLabel={"numClasses": "9" * 5000}
    ),
    "other count": lambda root: root["featuresDict"]["features"]["label"].update(
        classLabel={"numClasses": "8"}
    ),
}
INFO = {
    "no name": lambda root: root.pop("name"),
    "path": lambda root: root.update(name="../../etc/passwd"),
    "format": lambda root: root.update(fileFormat="tfrecord"),
    "no splits": lambda root: root.update(splits=[]),
    "splits": lambda root: root.update(splits={"train": 1}),
    "split": lambda root: root["splits"][0].update(name="test"),
    "elsewhere": lambda root: root["splits"][0].update(filepathTemplate="/etc/passwd"),
    "above": lambda root: root["splits"][0].update(filepathTemplate="../{DATASET}"),
    "negative": lambda root: root["splits"][0].update(shardLengths=["-3"]),
    "no lengths": lambda root: root["splits"][0].pop("shardLengths"),
    "lengths": lambda root: root["splits"][0].update(shardLengths=["8", "8"]),
}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        *(pytest.param("features.json", each, id=name) for name, each in FEATURES.items()),
        *(pytest.param("dataset_info.json", each, id=name) for name, each in INFO.items()),
    ],
)
def test_a_wrong_description_is_one_error(out, file, change):
    edit(out / file, change)
    with pytest.raises(
        InputError, match=r"(json|txt|csv)(, [][\w.]+)?: expected .*, got "
    ) as error:
        reader.load(out)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json", "label.labels.txt"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1, "a": 2}'])
def test_a_damaged_description_is_one_error(out, file, content):
    (out / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"out/{file}[^\n]*: expected [^\n]*, got [^\n]*$"):
        reader.load(out)


def test_records_are_those_that_protocol_buffers_read(out):
    """Against the message that TFDS compiled from TensorFlow's definition."""
    source = reader.open_records(out)._source
    for i in range(len(source)):
        features = tf_example_pb2.Example.FromString(source[i]).features.feature
        record = examples.parse(source[i])
        assert set(record) == set(features)
        assert record["image"] == features["image"].bytes_list.value[0]
        assert record["label"] == features["label"].int64_list.value[0]
        np.testing.assert_array_equal(record["age"], features["age"].float_list.value[0])


@pytest.mark.parametrize(
    "record",
    [
        b"\xff",
        b"no message",
        tf_example_pb2.Example().SerializeToString(),
        tf_example_pb2.Example(
            features={"feature": {"image_id": {}, "image": {"bytes_list": {"value": []}}}}
        ).SerializeToString(),
        tf_example_pb2.Example(
            features={"feature": {"image_id": {"bytes_list": {"value": [b"ISIC_0000003"]}}}}
        ).SerializeToString(),
        tf_example_pb2.Example(
            features={
                "feature": {
                    "image_id": {"bytes_list": {"value": [b"ISIC_0000003"]}},
                    "image": {"float_list": {"value": [1.0]}},
                }
            }
        ).SerializeToString(),
    ],
    # A map's entries are written in any order, so the bytes are no name for a test.
    ids=["one byte", "no message", "empty", "no bytes", "no image", "numbers for an image"],
)
def test_a_record_of_another_kind_is_named(out, record, monkeypatch):
    records = reader.load(out).records
    encoded = reader.open_records(out)
    monkeypatch.setattr(encoded, "_source", [record] * 8)
    records._source = os.getpid(), encoded
    with pytest.raises(InputError, match=r"record 1, image ISIC_0000003: expected .* decoded \("):
        records[1]
