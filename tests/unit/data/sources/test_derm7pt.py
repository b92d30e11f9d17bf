import numpy as np
import pytest

from jaxattn.data import splits
from jaxattn.data.sources import derm7pt
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import InputError

#: Every diagnosis of the official table, and the class that Gessert et al. 2019 give it.
DIAGNOSES = {
    "basal cell carcinoma": "bcc",
    "blue nevus": "nv",
    "clark nevus": "nv",
    "combined nevus": "nv",
    "congenital nevus": "nv",
    "dermal nevus": "nv",
    "recurrent nevus": "nv",
    "reed or spitz nevus": "nv",
    "dermatofibroma": "df",
    "lentigo": "bkl",
    "melanoma": "mel",
    "melanoma (in situ)": "mel",
    "melanoma (less than 0.76 mm)": "mel",
    "melanoma (0.76 to 1.5 mm)": "mel",
    "melanoma (more than 1.5 mm)": "mel",
    "melanoma metastasis": "mel",
    "seborrheic keratosis": "bkl",
    "vascular lesion": "vasc",
    "melanosis": "",
    "miscellaneous": "",
}
HEADER = (
    "case_num",
    "diagnosis",
    "seven_point_score",
    "location",
    "sex",
    "clinic",
    "derm",
    "notes",
)


def write_release(fake, source, parts=(range(0, 12), range(12, 15), range(15, 20))):
    rows = []
    for i, diagnosis in enumerate(DIAGNOSES):
        folder = source / "images" / "NEL"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("clinic", "derm"):
            # As in the release, some files are called in capitals.
            name = f"{kind}{i}.JPG" if i == 3 else f"{kind}{i}.jpg"
            (folder / name).write_bytes(fake.jpeg(i))
        sex = ("female", "male")[i % 2]
        rows.append(
            (i + 1, diagnosis, 2, "back", sex, f"NEL/clinic{i}.jpg", f"NEL/derm{i}.jpg", "")
        )
    fake.write_csv(source / "meta" / "meta.csv", HEADER, rows)
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        fake.write_csv(source / "meta" / f"{name}_indexes.csv", ["indexes"], [[i] for i in part])


@pytest.fixture
def release(fake, tmp_path):
    write_release(fake, tmp_path / "release_v0")
    return tmp_path / "release_v0"


def test_classes_are_mapped_as_published():
    assert {name: derm7pt.class_of(name) for name in DIAGNOSES} == DIAGNOSES


def test_official_folder(release, tmp_path):
    index = derm7pt.read(release)
    kept = {i: dx for i, dx in enumerate(DIAGNOSES.values()) if dx}
    assert [row.image_id for row in index.images] == [f"NEL_derm{i}" for i in kept]
    assert [row.dx for row in index.images] == list(kept.values())
    assert [row.lesion_id for row in index.images] == [f"case_{i + 1}" for i in kept]
    assert [row.path.name.lower() for row in index.images] == [f"derm{i}.jpg" for i in kept]
    assert set(index.notes["other_diagnosis"].values()) == {"melanosis", "miscellaneous"}
    assert not index.problems
    writer.write(index, tmp_path / "out")
    dataset = reader.load(tmp_path / "out", (45, 60))
    assert dataset.class_names == ("bcc", "bkl", "df", "mel", "nv", "vasc")
    assert dataset.records[0]["image"].shape == (45, 60, 3)
    split = splits.make(dataset, "official")
    names = {part: dataset.table["image_id"][rows].tolist() for part, rows in split.items()}
    assert names["validation"] == [f"NEL_derm{i}" for i in (12, 13, 14)]
    assert names["test"] == [f"NEL_derm{i}" for i in (15, 16, 17)]
    # The paper trains on both.
    joined = splits.make(dataset, "official", validation=0.0)
    assert len(joined["validation"]) == 0
    np.testing.assert_array_equal(
        joined["train"], np.sort(np.concatenate([split["train"], split["validation"]]))
    )


def test_wrong_folders(fake, release, tmp_path):
    with pytest.raises(InputError, match="source: expected .* with a folder images"):
        derm7pt.read(tmp_path)
    (release / "images" / "NEL" / "derm5.jpg").unlink()
    assert list(derm7pt.read(release).problems["missing_image"]) == ["NEL_derm5"]
    fake.write_csv(release / "meta" / "test_indexes.csv", ["indexes"], [[3]])
    with pytest.raises(InputError, match="not in the train part too"):
        derm7pt.read(release)
    fake.write_csv(release / "meta" / "test_indexes.csv", ["indexes"], [[20]])
    with pytest.raises(InputError, match=r"a number in \[0, 19\]"):
        derm7pt.read(release)
    (release / "meta" / "test_indexes.csv").unlink()
    with pytest.raises(InputError, match="test_indexes.csv: expected .*, got no such file"):
        derm7pt.read(release)
