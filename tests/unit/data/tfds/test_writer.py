"""Nothing is lost in silence, nothing half-written looks whole, and memory stays bounded."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import InputError
from jaxattn.evaluation import predictions, subgroups

ALL_IDS = [f"ISIC_000000{i}" for i in range(2, 10)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def image_file(source, image_id):
    return next(source.glob(f"HAM10000_images_part_*/{image_id}.jpg"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_report_counts(tmp_path, dataverse):
    report = writer.write(ham10000.read(dataverse), tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    # Counted by hand in the table of rows: two bkl of one lesion, one of every other class.
    ones = dict.fromkeys(ham10000.CLASS_NAMES, 1)
    assert report["classes"] == {**ones, "bkl": 2}
    assert (report["images"], report["lesions"], report["masks"]) == (8, 7, 8)
    assert report["problems"] == report["notes"] == {}
    assert (tmp_path / "out").stat().st_mode & 0o777 == dataverse.stat().st_mode & 0o777


def test_index_has_one_line_per_record_in_order(tmp_path, dataverse):
    out = tmp_path / "new" / "out"
    writer.write(ham10000.read(dataverse), out)
    lines = (out / "index.csv").read_text().splitlines()
    columns = "image_id,lesion_id,dx,dx_type,age,sex,localization,has_mask"
    assert lines[0] == columns + ",image_source,pixel_hash,perceptual_hash"
    assert lines[2].startswith("ISIC_0000003,HAM_0000003,nv,follow_up,,female,back,1,")
    assert lines[3].startswith("ISIC_0000004,HAM_0000004,mel,consensus,0.0,,,1,")
    ids = [record["image_id"].decode() for record in reader.open_records(out)]
    assert ids == [line.split(",")[0] for line in lines[1:]] == ALL_IDS


def test_layouts_give_the_same_records(tmp_path, kaggle, dataverse, isic2018):
    images = []
    for source in (kaggle, dataverse, isic2018):
        writer.write(ham10000.read(source), tmp_path / "out", overwrite=True)
        records = reader.open_records(tmp_path / "out")
        images.append([(r["image_id"], r["label"], r["image"]) for r in records])
    assert images[0] == images[1] == images[2]


def test_size_shrinks_image_and_mask_alike(tmp_path, dataverse):
    writer.write(ham10000.read(dataverse), tmp_path / "out", size=30)
    for example in reader.load(tmp_path / "out").records:
        assert example["image"].shape == (30, 40, 3)
        assert example["mask"].shape == (30, 40)
    with pytest.raises(InputError, match="size: expected at least 1 pixel, got 0"):
        writer.write(ham10000.read(dataverse), tmp_path / "other", size=0)


def test_missing_images_stop_before_anything_is_written(tmp_path, kaggle):
    image_file(kaggle, "ISIC_0000005").unlink()
    index = ham10000.read(kaggle)
    with pytest.raises(
        InputError, match=r"expected .*--skip-bad.*, got 1 missing image: ISIC_0000005"
    ) as raised:
        writer.write(index, tmp_path / "out")
    refused = tmp_path / "out.report.json"
    assert str(refused) in str(raised.value)
    assert list(json.loads(refused.read_text())["problems"]["missing_image"]) == ["ISIC_0000005"]
    assert not (tmp_path / "out").exists()
    report = writer.write(index, tmp_path / "out", skip_bad=True)
    assert report["images"] == 7
    assert list(report["problems"]["missing_image"]) == ["ISIC_0000005"]
    assert not refused.exists()  # it described a run that is over


def test_all_unusable_files_are_named_at_once(tmp_path, dataverse):
    for image_id in ALL_IDS[1:3]:
        truncate(image_file(dataverse, image_id))
    masks = dataverse / "HAM10000_segmentations_lesion_tschandl"
    Image.new("1", (45, 60)).save(masks / f"{ALL_IDS[5]}_segmentation.png")
    index = ham10000.read(dataverse)
    with pytest.raises(InputError) as raised:
        writer.write(index, tmp_path / "out")
    for text in (*ALL_IDS[1:3], "2 unreadable image", "1 unusable mask", "45x60", "60x45"):
        assert text in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataverse", "out.report.json"]
    report = writer.write(index, tmp_path / "out", skip_bad=True)
    assert list(report["problems"]["unreadable_image"]) == ALL_IDS[1:3]
    dataset = reader.load(tmp_path / "out")
    assert dataset.table["image_id"].tolist() == [ALL_IDS[i] for i in (0, 3, 4, 6, 7)]


def test_nothing_usable_is_an_error(tmp_path, kaggle):
    for path in kaggle.glob("*/*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="expected at least one usable image, got none"):
        writer.write(ham10000.read(kaggle), tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_an_existing_data_set_is_only_replaced_on_request(tmp_path, kaggle):
    out = tmp_path / "out"
    writer.write(ham10000.read(kaggle), out)
    before = contents(out)
    with pytest.raises(InputError, match="--overwrite"):
        writer.write(ham10000.read(kaggle), out)
    truncate(image_file(kaggle, ALL_IDS[0]))
    with pytest.raises(InputError, match="unreadable"):
        writer.write(ham10000.read(kaggle), out, overwrite=True)
    assert contents(out) == before
    writer.write(ham10000.read(kaggle), out, overwrite=True, skip_bad=True)
    assert len(reader.load(out)) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kaggle", "out"]


def test_other_files_are_never_replaced(tmp_path, kaggle):
    before = {path: path.read_bytes() for path in kaggle.rglob("*.*")}
    with pytest.raises(InputError, match="out: expected a new folder, got .* holds other files"):
        writer.write(ham10000.read(kaggle), kaggle, overwrite=True)
    assert {path: path.read_bytes() for path in kaggle.rglob("*.*")} == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out: expected a folder, got the file"):
        writer.write(ham10000.read(kaggle), tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="out: .* cannot be created"):
        writer.write(ham10000.read(kaggle), tmp_path / "file" / "out")


@pytest.mark.parametrize("stage", ["writing", "verifying"])
def test_interruption_leaves_what_was_there(tmp_path, kaggle, stage):
    def interrupt(items, what, total):
        for i, item in enumerate(items):
            if (what, i) == (stage, 5):
                raise KeyboardInterrupt
            yield item

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        writer.write(ham10000.read(kaggle), out, track=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["kaggle"]
    writer.write(ham10000.read(kaggle), out)
    before = contents(out)
    with pytest.raises(KeyboardInterrupt):
        writer.write(ham10000.read(kaggle), out, overwrite=True, track=interrupt)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kaggle", "out"]


def test_records_that_read_back_differently_are_found(tmp_path, kaggle, monkeypatch):
    honest = writer.open_records

    def corrupt(folder):
        records = list(honest(folder))
        records[4] = {**records[4], "image": records[4]["image"][:-1] + b"\0"}
        return records

    monkeypatch.setattr(writer, "open_records", corrupt)
    with pytest.raises(RuntimeError, match="record 4 is not the ISIC_0000006"):
        writer.write(ham10000.read(kaggle), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_image(tmp_path, kaggle):
    seen = []

    def track(items, what, total):
        for item in items:
            seen.append((what, total))
            yield item

    writer.write(ham10000.read(kaggle), tmp_path / "out", track=track)
    assert seen == [("writing", 8)] * 8 + [("verifying", 8)] * 8


def test_the_collection_of_an_image_is_kept(dataverse, tmp_path):
    """The column ``dataset`` of Dataverse's table; it becomes a subgroup of evaluation."""
    table = dataverse / "HAM10000_metadata"
    first, *lines = table.read_text().splitlines()
    lines[:3] = [line.replace("rosendahl", "vidir_modern") for line in lines[:3]]
    table.write_text("\n".join([first, *lines]) + "\n")
    writer.write(ham10000.read(dataverse), tmp_path / "out")
    dataset = reader.load(tmp_path / "out")
    assert sorted(dataset.table["image_source"]) == ["rosendahl"] * 5 + ["vidir_modern"] * 3
    shares = np.full((8, 7), 1 / 7)
    found = predictions.of_dataset(dataset, np.arange(8), shares, dataset.labels)
    by_source = subgroups.groups(found)["image source"]
    assert {name: inside.sum() for name, inside in by_source.items()} == {
        "rosendahl": 5,
        "vidir_modern": 3,
    }
