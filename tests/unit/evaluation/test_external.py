"""Which class is which, and which images of another data set a run knows."""

import dataclasses
import json

import numpy as np
import pytest

from jaxattn.data import class_mapping
from jaxattn.errors import InputError
from jaxattn.evaluation import external

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC2019 = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc", "unk")


def test_koeflers_classes_of_isic2019(make_dataset):
    dataset = make_dataset([0, 4, 6, 8, 5, 4], names=ISIC2019)
    mapping = class_mapping.read("isic2019_to_ham10000", dataset, HAM)
    kept = mapping.select(dataset)
    assert kept.class_names == HAM
    assert [HAM[label] for label in kept.labels] == ["akiec", "mel", "nv", "mel"]
    assert kept.table["image_id"].tolist() == [f"IMG_0000{i}" for i in (0, 1, 4, 5)]
    assert mapping.left_out(dataset) == {"scc": 1, "unk": 1}
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), 3)
    np.testing.assert_array_equal(mapping.merge(probabilities), probabilities)


def test_classes_of_the_model_may_be_merged(make_dataset):
    dataset = make_dataset([0, 1, 1], names=("benign", "malignant"))
    mapping = class_mapping.read("ham10000_to_malignant", dataset, HAM)
    assert mapping.class_names == ("malignant", "benign")
    assert mapping.select(dataset).labels.tolist() == [1, 0, 0]
    p = np.array([[0.1, 0.2, 0.05, 0.05, 0.3, 0.2, 0.1]])
    np.testing.assert_allclose(mapping.merge(p), [[0.1 + 0.2 + 0.3, 0.05 + 0.05 + 0.2 + 0.1]])
    assert mapping.labels(np.array([4, 5, 0])).tolist() == [0, 1, 0]


def test_every_shipped_mapping_is_of_its_source():
    shipped = json.loads(
        (class_mapping.Path(class_mapping.__file__).parent / class_mapping.FILE).read_text()
    )
    from jaxattn.data.sources import bcn20000, isic, isic2019, pad_ufes_20

    names = {
        "isic2019_to_ham10000": isic2019.CLASS_NAMES,
        "bcn20000_to_ham10000": bcn20000.CLASS_NAMES,
        "pad_ufes_20_to_ham10000": pad_ufes_20.CLASS_NAMES,
        "isic2017_to_ham10000": isic.YEARS[2017].class_names,
        "ham10000_to_malignant": isic.YEARS[2016].class_names,
        "isic2019_to_malignant": isic.YEARS[2016].class_names,
    }
    assert {name: set(entry["data"]) for name, entry in shipped.items()} == {
        name: set(classes) for name, classes in names.items()
    }
    assert set(shipped["ham10000_to_malignant"]["model"]) == set(HAM)
    assert set(shipped["isic2019_to_malignant"]["model"]) == set(ISIC2019) - {"unk"}


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_mapping_of_ones_own(make_dataset, tmp_path, kind):
    dataset = make_dataset([0, 1, 2], names=("mole", "melanoma", "wart"))
    path = tmp_path / f"classes.{kind}"
    data = {"mole": "nv", "melanoma": "mel", "wart": None}
    if kind == "json":
        path.write_text(json.dumps({"data": data}))
    else:
        path.write_text("data,model\n" + "".join(f"{a},{b or ''}\n" for a, b in data.items()))
    mapping = class_mapping.read(str(path), dataset, HAM)
    assert mapping.data == data
    assert len(mapping.select(dataset)) == 2


def test_what_a_mapping_leaves_open_is_one_clear_error(make_dataset, tmp_path):
    dataset = make_dataset([0, 1], names=("benign", "malignant"))
    for given, wanted in (
        ("", r"benign: expected one of akiec"),
        ("isic2019_to_ham1000", "did you mean 'isic2019_to_ham10000'"),
        ("isic2019_to_ham10000", "data: expected the class of noise's benign, or null"),
    ):
        with pytest.raises(InputError, match=wanted):
            class_mapping.read(given, dataset, HAM)
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"data": {"benign": "nv", "malignant": "melanoma"}}))
    with pytest.raises(InputError, match=r"malignant: expected one of .* mel, .*, got 'melanoma'"):
        class_mapping.read(str(path), dataset, HAM)
    path.write_text(json.dumps({"data": {"benign": 3}}))
    with pytest.raises(InputError, match=r"classes\.json, data\.benign: expected text, got 3"):
        class_mapping.read(str(path), dataset, HAM)


def test_known_images_by_every_kind(make_dataset):
    """Of eight images, by hand: 0 id, 1 lesion, 2 pixels, 3 near, 4 in the test part, 5-7 new."""
    drawn = np.random.default_rng(0).integers(0, 256, (14, 32), np.uint8)
    near = drawn[3] ^ np.eye(32, dtype=np.uint8)[5] * 0b1111  # four bits
    look = np.array([row.tobytes().hex() for row in drawn])
    known = external.Known(
        name="ham10000",
        image_ids=np.array(["ISIC_0", "ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4", "x"]),
        lesion_ids=np.array(["HAM_0", "HAM_1", "HAM_2", "HAM_3", "HAM_4", "case"]),
        trained=np.array([True] * 4 + [False, True]),
        hashes={
            "pixel_hash": np.array(["a", "b", "c", "d", "e", ""]),
            "perceptual_hash": np.array([*look[:5], ""]),
        },
    )
    dataset = make_dataset([0] * 8)
    table = dataset.table | {
        "image_id": np.array(["ISIC_0_downsampled", *(f"ISIC_9{i}" for i in range(6)), "x"]),
        "lesion_id": np.array(["", "HAM_1", "BCN_1", "BCN_2", "HAM_4", "BCN_3", "", "case"]),
        "pixel_hash": np.array(["q", "q", "c", "q", "q", "q", "q", "q"]),
        "perceptual_hash": np.array([*look[6:9], near.tobytes().hex(), *look[10:14]]),
    }
    dataset = dataclasses.replace(dataset, table=table)
    found = external.find_known(dataset, known)
    rows = {
        which: {kind: np.flatnonzero(marks).tolist() for kind, marks in kinds.items()}
        for which, kinds in found.items()
    }
    trained = {"id": [0], "lesion": [1], "same_pixels": [2], "near_duplicate": [3]}
    assert rows["trained"] == trained | {"any": [0, 1, 2, 3]}
    assert rows["own"] == trained | {"lesion": [1, 4], "any": [0, 1, 2, 3, 4]}
    # Names like "case" mean something only within one data set.
    same = external.find_known(dataclasses.replace(dataset, name="ham10000"), known)
    assert np.flatnonzero(same["own"]["id"]).tolist() == [0, 7]
    assert "same_pixels" not in external.find_known(dataset, known._replace(hashes={}))["own"]
