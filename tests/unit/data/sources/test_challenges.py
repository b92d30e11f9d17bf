"""ISIC 2018 to 2020, BCN20000 and PAD-UFES-20 in their official layouts, with their quirks."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxattn.data import sources
from jaxattn.data.sources import bcn20000, isic2018, isic2019, isic2020, pad_ufes_20
from jaxattn.errors import InputError

ONEHOT = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def onehot(image, dx, columns):
    return [image, *(f"{float(name == dx)}" for name in columns)]


def write_images(fake, folder, names, ending=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / f"{name}{ending}").write_bytes(fake.jpeg(seed))


def columns(index, *names):
    return [tuple(getattr(image, name) for name in names) for image in index.images]


def test_isic2018_parts_have_their_own_tables(tmp_path, fake):
    fake.write_isic2018(tmp_path)
    for part, image, dx in (("Validation", "ISIC_0034321", "MEL"), ("Test", "ISIC_0034524", "DF")):
        write_images(fake, tmp_path / f"ISIC2018_Task3_{part}_Input", [image])
        table = (
            tmp_path
            / f"ISIC2018_Task3_{part}_GroundTruth"
            / f"ISIC2018_Task3_{part}_GroundTruth.csv"
        )
        fake.write_csv(table, ["image", *fake.ONEHOT], [onehot(image, dx, fake.ONEHOT)])
    index = isic2018.read(tmp_path)
    found = {image.image_id: (image.lesion_id, image.dx, image.part) for image in index.images}
    expected = {row["image_id"]: (row["lesion_id"], row["dx"], "train") for row in fake.ROWS}
    expected["ISIC_0034321"] = ("ISIC_0034321", "mel", "validation")
    expected["ISIC_0034524"] = ("ISIC_0034524", "df", "test")
    assert found == expected
    assert index.problems == index.notes == {}


def test_isic2018_test_part_alone_as_the_dataverse_has_it(tmp_path, fake):
    write_images(fake, tmp_path / "ISIC2018_Task3_Test_Images", ["ISIC_0034524", "ISIC_0034525"])
    rows = ['"HAM_1"\t"ISIC_0034524"\t"nv"\t"histo"\t45.0\t"male"\t"back"\t"vidir_modern"']
    rows += ['"HAM_2"\t"ISIC_0034525"\t"akiec"\t"follow_up"\t\t"unknown"\t""\t"vidir_modern"']
    text = "\n".join(["\t".join((*fake.FIELDS, "dataset")), *rows]) + "\n"
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth.tab").write_text(text)
    index = isic2018.read(tmp_path)
    wanted = [("ISIC_0034524", "HAM_1", "nv", "test"), ("ISIC_0034525", "HAM_2", "akiec", "test")]
    assert columns(index, "image_id", "lesion_id", "dx", "part") == wanted
    assert set(index.notes["missing_part"]) == {"train", "validation"}
    with pytest.raises(InputError, match=r"python -m jaxattn\.predict needs no labels"):
        isic2018.read(tmp_path / "ISIC2018_Task3_Test_Images")


@pytest.fixture
def isic2019_folder(tmp_path, fake):
    """Sixteen images: two of each class, every other id downsampled, every fourth lesion blank."""
    truth, metadata, names = [], [], []
    for i in range(16):
        name = f"ISIC_{i:07}" + "_downsampled" * (i % 2)
        names.append(name)
        truth.append(onehot(name, ONEHOT[i % 8], ONEHOT))
        lesion = f"BCN_{i // 2:07}" if i % 4 else ""
        metadata.append([name, "55.0" if i % 3 else "", "anterior torso", lesion, "female"])
    source = tmp_path / "isic2019"
    # The archive of the images holds their folder once more.
    write_images(fake, source / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input", names)
    (source / "ISIC_2019_Training_Input" / "ATTRIBUTION.txt").write_text("x")
    fake.write_csv(source / "ISIC_2019_Training_GroundTruth.csv", ["image", *ONEHOT], truth)
    header = ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    fake.write_csv(source / "ISIC_2019_Training_Metadata.csv", header, metadata)
    return source


def test_isic2019(isic2019_folder):
    index = isic2019.read(isic2019_folder)
    assert index.class_names == ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
    assert [image.dx for image in index.images] == [n.lower() for n in ONEHOT[:8]] * 2
    first, second = index.images[:2]
    assert (first.image_id, first.lesion_id, first.sex) == (
        "ISIC_0000000",
        first.image_id,
        "female",
    )
    assert math.isnan(first.age)
    assert (second.image_id, second.lesion_id) == ("ISIC_0000001_downsampled", "BCN_0000000")
    assert (second.age, second.localization, second.part) == (55.0, "anterior torso", "train")
    assert len(index.notes["without_lesion"]) == 4
    assert index.problems == {}
    (isic2019_folder / "ISIC_2019_Training_Metadata.csv").unlink()
    with pytest.raises(InputError, match="which says which images show the same lesion, got none"):
        isic2019.read(isic2019_folder)


def test_isic2019_test_part(isic2019_folder, fake):
    source = isic2019_folder
    write_images(fake, source / "ISIC_2019_Test_Input", ["ISIC_0034321", "ISIC_0034322"])
    header = ["image", "age_approx", "anatom_site_general", "sex"]
    rows = [["ISIC_0034321", "60", "", "male"], ["ISIC_0034322", "", "head/neck", ""]]
    fake.write_csv(source / "ISIC_2019_Test_Metadata.csv", header, rows)
    assert len(isic2019.read(source).images) == 16  # without labels the part is left out
    truth = [onehot("ISIC_0034321", "UNK", ONEHOT), onehot("ISIC_0034322", "MEL", ONEHOT)]
    truth = [[*row, "1.0", "0.0"] for row in truth]
    header = ["image", *ONEHOT, "score_weight", "validation_weight"]
    fake.write_csv(source / "ISIC_2019_Test_GroundTruth.csv", header, truth)
    index = isic2019.read(source)
    assert index.class_names[-1] == "unk"
    tested = [row for row in columns(index, "image_id", "dx", "part", "age") if row[2] == "test"]
    assert tested[0] == ("ISIC_0034321", "unk", "test", 60.0)
    assert tested[1][:3] == ("ISIC_0034322", "mel", "test")


@pytest.mark.parametrize("kaggle", [True, False])
def test_isic2020(tmp_path, fake, kaggle):
    rows = [
        ["ISIC_1", "IP_1", "IL_1", "male", "45.0", "torso", "nevus", "benign", "0"],
        ["ISIC_2", "IP_1", "IL_2", "", "", "", "melanoma", "malignant", "1"],
        ["ISIC_3", "IP_2", "IL_3", "female", "50", "torso", "unknown", "benign", "0"],
    ]
    site = "anatom_site_general_challenge"
    header = ["image_name", "patient_id", "lesion_id", "sex", "age_approx", site, "diagnosis"]
    header += ["benign_malignant", "target"]
    if kaggle:
        rows, header = [row[:2] + row[3:] for row in rows], header[:2] + header[3:]
    columns_of = header
    name = "train.csv" if kaggle else "ISIC_2020_Training_GroundTruth_v2.csv"
    fake.write_csv(tmp_path / name, header, rows)
    folder = "jpeg/train" if kaggle else "ISIC_2020_Training_JPEG/train"
    write_images(fake, tmp_path / folder, [row[0] for row in rows])
    write_images(fake, tmp_path / "jpeg" / "test", ["ISIC_9"])
    index = isic2020.read(tmp_path)
    found = columns(index, "image_id", "patient_id", "dx")
    assert found == [("ISIC_1", "IP_1", "benign"), ("ISIC_2", "IP_1", "malignant"),
                     ("ISIC_3", "IP_2", "benign")]  # fmt: skip
    lesions = ["IP_1", "IP_1", "IP_2"] if kaggle else ["IL_1", "IL_2", "IL_3"]
    assert [image.lesion_id for image in index.images] == lesions
    header = ["image_name_1", "image_name_2"]
    fake.write_csv(tmp_path / "ISIC_2020_Training_Duplicates.csv", header, [["ISIC_1", "ISIC_3"]])
    lesions = [image.lesion_id for image in isic2020.read(tmp_path).images]
    assert lesions[0] == lesions[2]
    rows[0][-1] = "1"
    fake.write_csv(tmp_path / name, columns_of, rows)
    with pytest.raises(InputError, match="target: expected 0, as benign_malignant is benign"):
        isic2020.read(tmp_path)


def test_bcn20000(tmp_path, fake):
    header = ["bcn_filename", "age_approx", "anatom_site_general", "diagnosis", "lesion_id"]
    header += ["capture_date", "sex", "split"]
    rows = [
        ["BCN_0000000001.jpg", "55.0", "anterior torso", "MEL", "BCN_0003884", "2012-05-16", "male",
         "train"],
        ["BCN_0000000002.jpg", "", "", "SCC", "", "2012-05-16", "", "train"],
    ]  # fmt: skip
    fake.write_csv(tmp_path / "bcn_20k_train.csv", header, rows)
    write_images(fake, tmp_path / "BCN_20k_train" / "bcn_20k_train", [r[0][:-4] for r in rows])
    tested = [header[i] for i in (0, 1, 2, 6)]
    fake.write_csv(tmp_path / "bcn_20k_test.csv", tested, [["BCN_0000000009.jpg", "1", "", "male"]])
    write_images(fake, tmp_path / "BCN_20k_test", ["BCN_0000000009"])
    index = bcn20000.read(tmp_path)
    assert columns(index, "image_id", "lesion_id", "dx", "sex") == [
        ("BCN_0000000001", "BCN_0003884", "mel", "male"),
        ("BCN_0000000002", "BCN_0000000002", "scc", ""),
    ]
    assert (index.problems, set(index.notes)) == ({}, {"missing_part", "without_lesion"})
    rows[0][3] = "MELANOMA"
    fake.write_csv(tmp_path / "bcn_20k_train.csv", header, rows)
    with pytest.raises(InputError, match=r"row 2, diagnosis: expected .*, got 'MELANOMA'"):
        bcn20000.read(tmp_path)


def test_pad_ufes_20(tmp_path, fake):
    header = [
        "patient_id",
        "lesion_id",
        "age",
        "gender",
        "region",
        "diagnostic",
        "img_id",
        "biopsed",
    ]
    rows = [
        ["PAT_1516", "1765", "8", "", "ARM", "NEV", "PAT_1516_1765_530.png", "False"],
        ["PAT_46", "881", "55", "FEMALE", "NECK", "BCC", "PAT_46_881_939.png", "True"],
        ["PAT_46", "881", "55", "FEMALE", "NECK", "BCC", "PAT_46_881_14.png", "True"],
    ]
    fake.write_csv(tmp_path / "metadata.csv", header, rows)
    for i, row in enumerate(rows):
        folder = tmp_path / f"imgs_part_{i + 1}" / f"imgs_part_{i + 1}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((9, 8, 4), 90 * i, np.uint8)).save(folder / row[6])
    index = pad_ufes_20.read(tmp_path)
    assert columns(index, "image_id", "lesion_id", "patient_id", "dx", "sex", "dx_type") == [
        ("PAT_1516_1765_530", "PAT_1516_1765", "PAT_1516", "nev", "", "consensus"),
        ("PAT_46_881_14", "PAT_46_881", "PAT_46", "bcc", "female", "histo"),
        ("PAT_46_881_939", "PAT_46_881", "PAT_46", "bcc", "female", "histo"),
    ]
    assert [image.path.suffix for image in index.images] == [".png"] * 3
    assert index.problems == index.notes == {}


def test_a_folder_is_recognised_by_the_names_in_it(tmp_path, isic2019_folder, kaggle, isic2018):
    assert sources.recognise(isic2019_folder) == "isic2019"
    assert sources.recognise(kaggle) == sources.recognise(isic2018) == "ham10000"
    (isic2018 / "ISIC2018_Task3_Test_Input").mkdir()
    (isic2018 / "ISIC2018_Task3_Test_Input" / "a.jpg").touch()
    assert sources.recognise(isic2018) == "isic2018"
    assert sources.recognise(tmp_path / "nowhere") == ""
    with pytest.raises(InputError, match=r"it looks like isic2019: .*--dataset=isic2019"):
        sources.read("ham10000", isic2019_folder, {})
    assert sources.read("auto", isic2019_folder, {}).name == "isic2019"
    with pytest.raises(InputError, match="--label-column: .* or --dataset=table, got a value for"):
        sources.read("isic2019", isic2019_folder, {"label_column": "dx"})
