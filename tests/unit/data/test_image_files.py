"""Finding images by files, folders and patterns."""

import os
from pathlib import Path

import pytest
from PIL import Image

from jaxattn.data import image_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images and what lies beside them; the current folder."""
    image = Image.new("RGB", (8, 8))
    for name in ("b.jpg", "a.PNG", "deep/er/Läsion 1.jpeg", "x [1].tif", "no_ending", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    image.save(tmp_path / "deep/ISIC_1_superpixels.png")
    image.save(tmp_path / "deep/ISIC_1_segmentation.png")
    for name in ("._b.jpg", ".hidden/d.jpg", "Thumbs.db", "ATTRIBUTION.txt", "LICENSE", "deep/._x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "deep/up").symlink_to(tmp_path)  # a loop
    monkeypatch.chdir(tmp_path)
    return tmp_path


IMAGES = ["a.PNG", "b.jpg", "c.webp", "link.jpg", "no_ending", "x [1].tif", "deep/er/Läsion 1.jpeg"]


def test_a_folder(folder):
    found, skipped = image_files.find([str(folder)])
    assert found == [folder / name for name in IMAGES]
    assert skipped == 7  # hidden folders are not entered


def test_files_are_taken_as_they_are(folder):
    given = ["Thumbs.db", "x [1].tif", "missing.jpg", "nothing*.jpg", "._b.jpg", "b.jpg", "b.jpg"]
    found, skipped = image_files.find(given)
    assert (found, skipped) == ([Path(each) for each in given[:-1]], 0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["b.jpg", "link.jpg"]),
        ("*", [*IMAGES[:3], "deep/er/Läsion 1.jpeg", *IMAGES[3:6]]),
        ("**/er/*.jpeg", ["deep/er/Läsion 1.jpeg"]),
        ("d??p", ["deep/er/Läsion 1.jpeg"]),
    ],
)
def test_patterns(folder, pattern, names):
    (folder / "deep/up").unlink()
    assert image_files.find([pattern])[0] == [Path(name) for name in names]
    assert image_files.find([str(folder / pattern)])[0] == [folder / name for name in names]


def test_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert image_files.find(["~/b.jpg", "~/*.webp"])[0] == [folder / "b.jpg", folder / "c.webp"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed(folder):
    (folder / "deep").chmod(0)
    try:
        assert folder / "deep" in image_files.find([str(folder)])[0]
    finally:
        (folder / "deep").chmod(0o700)
