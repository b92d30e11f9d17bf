"""Writes a public data set as TFDS records in ArrayRecord files, without TensorFlow.

TFDS' ``SequentialWriter`` streams records to disk in our order. TFDS' builders do not fit: they
hold up to 1 GB of records in memory to shuffle them and spill more (HAM10000 has 2.7 GB) through
TensorFlow's file system.
"""

import collections
import concurrent.futures
import csv
import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxattn.data import fingerprint, hashes, images
from jaxattn.data.dataset import Dataset
from jaxattn.data.sources import attributes
from jaxattn.data.sources.source_index import (
    HASH_COLUMNS,
    Findings,
    SourceImage,
    SourceIndex,
    note_unused,
    without_empty,
)
from jaxattn.data.tfds import folders, reader
from jaxattn.data.tfds.reader import INDEX, REPORT, is_prepared, open_records
from jaxattn.data.tfds.schema import SPLIT
from jaxattn.errors import InputError, invalid

VERSION = "1.0.0"
_RECORDS_PER_SHARD = 1024

#: Shows progress: ``(items, what is done, number of items) -> the same items``.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


class Written(NamedTuple):
    """What a record that is read back must have.

    Attributes:
        checksum: Of its encoded image and masks.
        hashes: Of its pixels, the ``HASH_COLUMNS`` of the index.
    """

    checksum: int
    hashes: tuple[str, str]


def features(index: SourceIndex) -> tfds.features.FeaturesDict:
    """The features of a record.

    ``image`` is a JPEG or a PNG. ``mask`` is a PNG of 0 and 255 of the image's size, or one black
    pixel if ``has_mask`` is False, so that plain TFDS can decode every record. ``attributes``, if
    the data set has any, is a PNG with one bit per dermoscopic attribute, and one black pixel if
    ``has_attributes`` is False. ``part`` is the image's part of the official split, ``patient_id``
    its patient and ``image_source`` its collection, if there are any. ``age`` is in years, NaN if
    unknown; unknown text is empty.
    """
    further: dict[str, Any] = {}
    for name in ("part", "patient_id", "image_source"):
        if name in index.columns:
            further[name] = tfds.features.Text()
    if "has_attributes" in index.columns:
        further["attributes"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        further["has_attributes"] = tfds.features.Scalar(np.bool_)
    return tfds.features.FeaturesDict(
        further
        | {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "has_mask": tfds.features.Scalar(np.bool_),
            "label": tfds.features.ClassLabel(names=list(index.class_names)),
            "image_id": tfds.features.Text(),
            "lesion_id": tfds.features.Text(),
            "dx_type": tfds.features.Text(),
            "age": tfds.features.Scalar(np.float32),
            "sex": tfds.features.Text(),
            "localization": tfds.features.Text(),
        }
    )


def write(
    index: SourceIndex,
    out: Path,
    *,
    size: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    track: Track = lambda items, what, total: items,
) -> dict[str, Any]:
    """Writes the images of an index, reads all of them back, and reports.

    Everything goes into a temporary folder beside ``out``, renamed at the end: an interrupted run
    leaves nothing behind, and what a killed one leaves is removed by the next, see
    `jaxattn.data.tfds.folders`. Memory does not depend on the number of images, but for their
    hashes.

    Args:
        index: What to write.
        out: Folder to create, for `jaxattn.data.tfds.reader.load`: the records, ``index.csv`` (row
            i describes record i), ``report.json`` and ``fingerprint.json``.
        size: Length of the shorter side to shrink to, in pixels; None keeps the files' bytes.
        skip_bad: Leave out images that cannot be used instead of stopping. The report names them.
        overwrite: Replace a prepared data set.
        track: Shows progress.

    Returns:
        The report: counts of images, masks, lesions and of each class, problems and notes. Notes
        are those of the index, and images of different lesions that show the same:
        ``same_pixels``, ``same_pixels_other_diagnosis`` and ``near_duplicate``.

    Raises:
        InputError: An image would be lost and ``skip_bad`` is not set (``OUT.report.json`` then
            names all of them), no image is left, ``out`` holds something else, or another process
            writes it.
    """
    if size is not None and size < 1:
        raise invalid("size", "at least 1 pixel", size)
    index.check()
    note_unused(index)
    out = out.resolve()
    folders.recover(out)
    _check_out(out, overwrite)
    refused = out.with_name(f"{out.name}.{REPORT}")
    report = {
        "name": index.name,
        "source": str(index.source),
        "layout": index.layout,
        "size": size,
        "problems": index.problems,
        "notes": index.notes,
    }
    if not skip_bad:
        _refuse(index, index.problems, report, refused)
    with folders.temporary(out) as folder:
        written, problems = _write(index, folder, size, track)
        report["problems"] = index.problems | problems
        if not skip_bad:
            _refuse(index, problems, report, refused)
        if not written:
            raise invalid(str(index.source), "at least one usable image", "none")
        report |= _verify(index, folder, written, track)
        dataset = reader.load(folder)
        report["notes"] = index.notes | _duplicates(dataset)
        _write_json(folder / REPORT, report)
        fingerprint.write(folder, dataset.fingerprint)
        folders.exchange(folder, out)
    refused.unlink(missing_ok=True)
    return report


def _check_out(out: Path, overwrite: bool) -> None:
    if out.is_file():
        raise invalid("out", "a folder", f"the file {out}")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_prepared(out):
        raise invalid("out", "a new folder", f"{out}, which holds other files")
    if not overwrite:
        given = f"{out}, which holds a data set (--overwrite replaces it)"
        raise invalid("out", "a new folder", given)


def _refuse(index: SourceIndex, problems: Findings, report: Mapping, path: Path) -> None:
    """Raises InputError if images would be lost, naming the first of each kind."""
    if not problems:
        return
    folders.make(path.parent)
    _write_json(path, report)
    kinds = []
    for kind, found in problems.items():
        first = ", ".join(f"{name} ({what})" for name, what in itertools.islice(found.items(), 3))
        more = ", ..." if len(found) > 3 else ""
        kinds.append(f"{len(found)} {kind.replace('_', ' ')}: {first}{more}")
    raise invalid(
        str(index.source),
        "one row and a complete file for every image (--skip-bad leaves the others out)",
        f"{'; '.join(kinds)}; {path} names all",
    )


def _write(
    index: SourceIndex, folder: Path, size: int | None, track: Track
) -> tuple[dict[str, Written], Findings]:
    """Writes all usable records; returns what was written in order, and the problems."""
    identity = tfds.core.DatasetIdentity(
        name=index.name,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features(index),
        citation=index.citation,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    written: dict[str, Written] = {}
    problems: Findings = collections.defaultdict(dict)

    def usable() -> Iterator[dict[str, Any]]:
        total = len(index.images)
        for image_id, record, found, error in track(_encoded(index, size), "writing", total):
            if isinstance(found, str):
                problems[found][image_id] = error
            else:
                written[image_id] = Written(_checksum(record), found)
                yield record

    writer = tfds.core.SequentialWriter(info, _RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits([SPLIT])
    # In one call, as each call rewrites the metadata; it takes any iterable, so a stream.
    writer.add_examples({SPLIT: usable()})
    writer.close_all()
    return written, dict(problems)


def _encoded(index: SourceIndex, size: int | None) -> Iterator[tuple[str, dict, Any, str]]:
    """`_encode` of all images, by threads, in order, with a bounded number in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            columns = index.columns
            for image in index.images:
                waiting.append(pool.submit(_encode, image, columns, size))
                if len(waiting) >= 4 * (workers or 1):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(
    image: SourceImage, columns: Collection[str], size: int | None
) -> tuple[str, dict[str, Any], tuple[str, str] | str, str]:
    """An image_id, its record and hashes; or a kind of problem instead, and its description."""
    kind = "unreadable_image"
    mask = bits = images.blank_mask()
    try:
        data, given, stored, pixels = images.encode_image(image.path, size)
        if image.mask:
            kind = "unusable_mask"
            mask = images.encode_mask(image.mask, image.path, given, stored)
        if image.attributes:
            kind = "unusable_attributes"
            bits = attributes.encode(image.attributes, image.path, given, stored)
    except InputError as error:
        return image.image_id, {}, kind, str(error)
    record = {
        "image": data,
        "mask": mask,
        "label": image.dx,
        **{name: getattr(image, name) for name in columns if name != "dx"},
    }
    if "has_attributes" in columns:
        record["attributes"] = bits
    return image.image_id, record, (hashes.pixels(pixels), hashes.perceptual(pixels)), ""


def _checksum(record: Mapping[str, Any]) -> int:
    checksum = zlib.crc32(record["mask"], zlib.crc32(record["image"]))
    return zlib.crc32(record.get("attributes", b""), checksum)


def _verify(
    index: SourceIndex, folder: Path, written: Mapping[str, Written], track: Track
) -> dict[str, Any]:
    """Reads every record back, compares it, and writes index.csv from the records."""
    records = open_records(folder)
    if len(records) != len(written):
        raise RuntimeError(f"{folder}: wrote {len(written)} records, read {len(records)}")
    lesions = set()
    columns = index.columns
    counts = {name: collections.Counter[str]() for name in ("dx", "part")}
    masks = annotated = 0
    with (folder / INDEX).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((*columns, *HASH_COLUMNS))
        for i, image_id in enumerate(track(written, "verifying", len(written))):
            record = records[i]
            wanted = written[image_id]
            if record["image_id"] != image_id.encode() or _checksum(record) != wanted.checksum:
                raise RuntimeError(f"{folder}: record {i} is not the {image_id} that was written")
            entry = _index_entry(record, columns, index.class_names)
            rows.writerow((*entry.values(), *wanted.hashes))
            for name, counter in counts.items():
                counter[entry.get(name, "")] += 1
            lesions.add(entry["lesion_id"])
            masks += entry["has_mask"]
            annotated += entry.get("has_attributes", 0)
    classes = {name: counts["dx"][name] for name in index.class_names}
    report = {"images": len(written), "masks": masks, "lesions": len(lesions), "classes": classes}
    if "has_attributes" in columns:
        report["attributes"] = annotated
    if "part" in columns:
        report["parts"] = dict(counts["part"])
    return report


def _duplicates(dataset: Dataset) -> Findings:
    """Images of different lesions that show the same, each with the first such image."""
    found: Findings = collections.defaultdict(dict)
    table = dataset.table
    ids, lesions = table["image_id"], table["lesion_id"]

    def add(kind: str, pairs: hashes.Pairs, words: str) -> None:
        for first, second in zip(*pairs, strict=True):
            if first < second and lesions[first] != lesions[second]:
                other = dataset.labels[first] != dataset.labels[second]
                one, two = (dataset.class_names[dataset.labels[i]] for i in (first, second))
                more = f", which is {one} and not {two}" if other else ""
                place = f"{kind}_other_diagnosis" if other and kind == "same_pixels" else kind
                found[place].setdefault(str(ids[second]), f"{words} {ids[first]}{more}")

    add("same_pixels", hashes.same(table["pixel_hash"], table["pixel_hash"]), "same pixels as")
    known = found["same_pixels"].keys() | found["same_pixels_other_diagnosis"].keys()
    near = hashes.near(table["perceptual_hash"], table["perceptual_hash"])
    add("near_duplicate", near, "near-duplicate of")
    found["near_duplicate"] = {k: v for k, v in found["near_duplicate"].items() if k not in known}
    return without_empty(found)


def _index_entry(
    record: Mapping[str, Any], columns: Collection[str], class_names: tuple[str, ...]
) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name in columns:
        if name == "dx":
            entry[name] = class_names[record["label"]]
        elif name == "age":
            entry[name] = "" if math.isnan(record["age"]) else float(record["age"])
        elif name.startswith("has_"):
            entry[name] = int(record[name])
        else:
            entry[name] = record[name].decode()
    return entry


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
