import dataclasses
import itertools
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxattn.data import derived, packed
from jaxattn.data.loaders import MAX_THREADS, Loader, decode_all
from jaxattn.data.samplers import Sampler
from jaxattn.errors import InputError
from jaxattn.runtime import devices

WAYS = [("in_memory", 0), ("grain", 0), ("grain", 2)]


def loader(dataset, name, workers=0):
    return Loader(dataset, 8, ConfigDict({"name": name, "workers": workers}), devices.mesh())


def content(made, batch):
    """What a step sees: rows, labels and images."""
    rows = np.asarray(batch["row"])
    images = made.data["image"][rows] if made.data else batch["image"]
    return rows, np.asarray(batch["label"]), np.asarray(images)


@pytest.mark.parametrize(("name", "workers"), WAYS)
def test_batches_are_the_samplers_from_any_step_on(make_dataset, name, workers):
    dataset = make_dataset(np.arange(30) % 3)
    sampler = Sampler(np.arange(1, 25), dataset.labels[1:25], 8, seed=3, name="oversample")
    made = loader(dataset, name, workers)
    for first in (0, 2):
        batches = list(made.training(sampler, first, 5))
        assert len(batches) == 5 - first
        for step, batch in enumerate(batches, first):
            rows, labels, images = content(made, batch)
            np.testing.assert_array_equal(rows, sampler.batch(step))
            np.testing.assert_array_equal(labels, dataset.labels[rows])
            expected = np.stack([dataset.records[row]["image"] for row in rows])
            np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(("name", "workers"), WAYS[:2])
def test_evaluation_is_all_rows_in_order(make_dataset, name, workers):
    dataset = make_dataset(np.arange(30) % 3)
    made, rows = loader(dataset, name, workers), np.array([3, 9, 4, 27, 11])
    batches = list(made.evaluation(rows, 4))
    assert [len(batch["row"]) for batch in batches] == [4, 4]
    seen = np.concatenate([content(made, batch)[0] for batch in batches])
    np.testing.assert_array_equal(seen, [3, 9, 4, 27, 11, 11, 11, 11])


def test_in_memory_images_are_on_the_device_as_bytes(make_dataset):
    dataset = make_dataset(np.arange(20) % 3)
    images = loader(dataset, "in_memory").data["image"]
    assert isinstance(images, jax.Array)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[7], dataset.records[7]["image"])
    assert loader(dataset, "auto").data  # 20 images of 8x8 fit anywhere
    assert not loader(dataset, "grain").data


def test_packed_images_are_the_same(make_dataset, monkeypatch):
    """As on a TPU: 192 bytes of an image fill two rows of 128, 64 of a mask half of one."""
    dataset = make_dataset(np.arange(20) % 3)
    make = lambda: Loader(  # noqa: E731
        dataset, 8, ConfigDict({"name": "in_memory", "workers": 0}), devices.mesh(), "lesion"
    )
    plain = make().data
    monkeypatch.setattr(packed, "PLATFORMS", ("cpu",))
    data, rows = make().data, np.array([3, 19, 0, 3])
    assert data["image"].rows.shape == (20, 2, 128)
    assert data["mask"].rows.shape == (20, 1, 128)
    for name in ("image", "mask"):
        got = jax.jit(lambda packed, rows: packed[rows])(data[name], rows)
        np.testing.assert_array_equal(got, plain[name][rows])


def test_streaming_decodes_only_what_is_asked_for(make_dataset, monkeypatch):
    """A run that starts late, or stops early, does not read the whole data set.

    What is decoded ahead is held in memory: a batch for each thread and a few more.
    """
    dataset, read = make_dataset(np.arange(3000) % 3), []
    original = type(dataset.records).__getitem__
    monkeypatch.setattr(
        type(dataset.records),
        "__getitem__",
        lambda self, row: read.append(row) or original(self, row),
    )
    sampler = Sampler(np.arange(3000), dataset.labels, 32)
    batches = loader(dataset, "grain").training(sampler, 500, 700)
    list(itertools.islice(batches, 3))
    ahead = 2 + MAX_THREADS + 2
    allowed = [sampler.batch(step) for step in range(500, 503 + ahead)]
    assert set(read) <= set(np.concatenate(allowed).tolist())


def test_a_record_that_cannot_be_read_is_named(make_dataset):
    class Broken(type(make_dataset([0]).records)):
        def __getitem__(self, row):
            raise InputError(f"image IMG_{row:05d} cannot be decoded")

    dataset = make_dataset([0, 1, 2])
    object.__setattr__(dataset, "records", Broken(3, 8))
    with pytest.raises(InputError, match="IMG_00000 cannot be decoded"):
        decode_all(dataset, 8)
    with pytest.raises(InputError, match="IMG_0000. cannot be decoded"):
        next(loader(dataset, "grain").evaluation(np.arange(3), 2))


@pytest.mark.parametrize(("name", "workers"), WAYS)
@pytest.mark.parametrize(("masks", "field"), [("lesion", "mask"), ("attributes", "attributes")])
def test_masks_come_where_they_are_asked_for(make_dataset, name, workers, masks, field):
    dataset = make_dataset(np.arange(12) % 3)
    has = np.arange(12) % 4 != 1
    records = [
        {"image": example["image"]} | ({field: example["mask"] * 6} if has[i] else {})
        for i, example in enumerate(dataset.records[i] for i in range(12))
    ]
    table = {**dataset.table, "has_mask": np.zeros(12, bool), f"has_{field}": has}
    dataset = dataclasses.replace(dataset, table=table, records=records)
    config = ConfigDict({"name": name, "workers": workers})
    made = Loader(dataset, 8, config, devices.mesh(), masks)
    rows = np.array([1, 7, 2, 5])
    (batch,) = made.evaluation(rows, 4)
    assert np.asarray(batch["has_mask"]).tolist() == [False, True, True, False]
    seen = made.data["mask"][rows] if made.data else batch["mask"]
    for place, row in enumerate(rows):
        wanted = dataset.records[row].get(field, np.zeros((8, 8)))
        np.testing.assert_array_equal(seen[place], wanted > 0)
        np.testing.assert_array_equal(content(made, batch)[2][place], records[row]["image"])


def test_no_image_has_masks_of_a_kind_the_data_set_does_not_have(make_dataset):
    config = ConfigDict({"name": "in_memory", "workers": 0})
    made = Loader(make_dataset([0, 1, 2]), 8, config, devices.mesh(), "attributes")
    (batch,) = made.evaluation(np.arange(3), 3)
    assert not batch["has_mask"].any()
    assert not made.data["mask"].any()


def test_copies_of_an_image_are_decoded_once(make_dataset, monkeypatch):
    dataset, read = make_dataset([0, 1, 2]), []
    rows, moves = (
        np.array([2, 0, 1, 0, 2]),
        ["same", "clockwise", "same", "left_right", "half_turn"],
    )
    records = derived.View(dataset.records, rows, moves)
    expected = [records[i] for i in range(5)]
    original = type(dataset.records).__getitem__
    monkeypatch.setattr(
        type(dataset.records),
        "__getitem__",
        lambda self, row: read.append(row) or original(self, row),
    )
    copied = dataclasses.replace(derived.take(dataset, rows), records=records)
    read.clear()
    arrays = decode_all(copied, 8, "mask")
    assert sorted(read) == [0, 1, 2]
    for field in ("image", "mask"):
        np.testing.assert_array_equal(arrays[field], [example[field] for example in expected])


def test_masks_are_decoded_only_where_they_are_asked_for(make_dataset):
    dataset, asked = make_dataset([0, 1, 2]), []

    class Masked(type(dataset.records)):
        def decoding(self, fields):
            asked.append(set(fields))
            return self

    dataset = dataclasses.replace(dataset, records=Masked(3, 8))
    loader(derived.take(dataset, np.array([2, 0])), "grain")
    config = ConfigDict({"name": "grain", "workers": 0})
    Loader(dataset, 8, config, devices.mesh(), "lesion")
    assert asked == [{""}, {"mask"}]


def test_unknown_masks_are_one_clear_error(make_dataset):
    config = ConfigDict({"name": "grain", "workers": 0})
    with pytest.raises(InputError, match="masks: .*did you mean 'lesion'.*got 'lesions'"):
        Loader(make_dataset([0, 1, 2]), 8, config, devices.mesh(), "lesions")


def test_unknown_loader_is_one_clear_error(make_dataset):
    with pytest.raises(InputError, match="loader.name: .*did you mean 'in_memory'.*got 'in_memry'"):
        loader(make_dataset([0, 1, 2]), "in_memry")


PARENT = """
import multiprocessing, os, time
from jaxattn.data import loaders
def work():
    loaders._end_with_parent(0, 1)
    print(os.getpid(), flush=True)
    time.sleep(600)
multiprocessing.get_context("fork").Process(target=work).start()
time.sleep(600)
"""


def test_a_worker_ends_with_a_program_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PARENT],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        text=True,
    ) as parent:
        worker = Path("/proc", parent.stdout.readline().strip())
        assert worker.exists()
        parent.kill()
        deadline = time.monotonic() + 30
        while worker.exists() and "State:\tZ" not in (worker / "status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
