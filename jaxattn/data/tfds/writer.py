"""Writes an inventory as a TFDS data set in ArrayRecord files, without TensorFlow.

TFDS' ``SequentialWriter`` streams records to disk in our order. Its builders do not fit: they hold
up to 1 GB of records in memory to shuffle them, and beyond that (HAM10000 has 2.7 GB) spill through
TensorFlow's file system.
"""

import collections
import concurrent.futures
import contextlib
import csv
import itertools
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxattn.data import images
from jaxattn.data.sources import attributes
from jaxattn.data.sources.source_index import Findings, Row, SourceIndex
from jaxattn.data.tfds.reader import INDEX, SPLIT, is_prepared, open_records
from jaxattn.errors import InputError

REPORT = "report.json"
VERSION = "1.0.0"
_RECORDS_PER_SHARD = 1024

#: Wraps an iterable, given what it does and how many items to expect; rich's `track` is one.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def features(inventory: SourceIndex) -> tfds.features.FeaturesDict:
    """Returns what a record holds.

    ``image`` is a JPEG; ``mask`` a PNG of 0 and 255 of the image's size, or one black pixel where
    ``has_mask`` is False (any TFDS user can then decode every record); ``attributes``, where the
    data set has them, likewise a PNG with a bit for each dermoscopic feature; ``part``, where there
    is an official split, the image's part; ``age`` is in years, NaN where unknown; an unknown text
    is empty.
    """
    further: dict[str, Any] = {}
    if "part" in inventory.columns:
        further["part"] = tfds.features.Text()
    if "has_attributes" in inventory.columns:
        further["attributes"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        further["has_attributes"] = tfds.features.Scalar(np.bool_)
    return tfds.features.FeaturesDict(
        further
        | {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "has_mask": tfds.features.Scalar(np.bool_),
            "label": tfds.features.ClassLabel(names=list(inventory.class_names)),
            "image_id": tfds.features.Text(),
            "lesion_id": tfds.features.Text(),
            "dx_type": tfds.features.Text(),
            "age": tfds.features.Scalar(np.float32),
            "sex": tfds.features.Text(),
            "localization": tfds.features.Text(),
        }
    )


def prepare(
    inventory: SourceIndex,
    out: Path,
    *,
    size: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    track: Track = lambda items, what, total: items,
) -> dict[str, Any]:
    """Writes the images of an inventory, reads all of them back, and reports.

    Everything goes into a temporary folder beside ``out`` that takes its name at the end: an
    interrupted run leaves nothing. Memory does not depend on the number of images.

    Args:
        inventory: What to write.
        out: Folder to make, for `jaxattn.data.tfds.reader.load`: the records, ``index.csv`` (row i
            describes record i) and ``report.json``.
        size: Wanted length of the shorter side in pixels; None keeps the files' bytes.
        skip_bad: Leave out what cannot be used, rather than stop. The report names it.
        overwrite: Replace a data set that was prepared before.
        track: Shows progress.

    Returns:
        The report: counts of images, masks, lesions and of each class, problems and notes.

    Raises:
        InputError: Something would be lost and ``skip_bad`` is not set (all of it is then named in
            the file ``OUT.report.json``), no image is left, or ``out`` holds something else.
    """
    if size is not None and size < 1:
        raise InputError(f"size: given {size}, wanted at least 1 pixel")
    out = out.resolve()
    _check_out(out, overwrite)
    refused = out.with_name(f"{out.name}.{REPORT}")
    report = {
        "name": inventory.name,
        "source": str(inventory.source),
        "layout": inventory.layout,
        "size": size,
        "problems": inventory.problems,
        "notes": inventory.notes,
    }
    if not skip_bad:
        _refuse(inventory, inventory.problems, report, refused)
    with _temporary_folder(out) as folder:
        written, problems = _write(inventory, folder, size, track)
        report["problems"] = inventory.problems | problems
        if not skip_bad:
            _refuse(inventory, problems, report, refused)
        if not written:
            raise InputError(f"{inventory.source} holds no usable image, wanted at least one")
        report |= _verify(inventory, folder, written, track)
        _write_json(folder / REPORT, report)
        _move(folder, out)
    refused.unlink(missing_ok=True)
    return report


def _check_out(out: Path, overwrite: bool) -> None:
    if out.is_file():
        raise InputError(f"out {out} is a file, wanted a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_prepared(out):
        raise InputError(f"out {out} holds other files, wanted a new folder")
    if not overwrite:
        raise InputError(
            f"out {out} holds a data set already, wanted a new folder, or --overwrite to replace it"
        )


def _refuse(inventory: SourceIndex, problems: Findings, report: Mapping, path: Path) -> None:
    """Stops a run in which something would be lost, naming the first of each kind."""
    if not problems:
        return
    _make_folder(path.parent)
    _write_json(path, report)
    kinds = []
    for kind, found in problems.items():
        first = ", ".join(f"{name} ({what})" for name, what in itertools.islice(found.items(), 3))
        more = ", ..." if len(found) > 3 else ""
        kinds.append(f"{len(found)} {kind.replace('_', ' ')}: {first}{more}")
    raise InputError(
        f"{inventory.source}: {'; '.join(kinds)}; wanted one row and a whole file for every image, "
        f"or --skip-bad to leave these out; all are named in {path}"
    )


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    _make_folder(out.parent)
    folder = out.with_name(f".{out.name}.incomplete-{uuid.uuid4().hex[:8]}")
    _make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, out: Path) -> None:
    """Gives a finished folder its name; a data set of that name goes only when this one is in."""
    old = folder.with_name(folder.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out: {folder} cannot be made ({error.strerror}), wanted a folder to write in"
        ) from error


def _write(
    inventory: SourceIndex, folder: Path, size: int | None, track: Track
) -> tuple[dict[str, int], Findings]:
    """Writes all usable records; returns a checksum of each, in their order, and the others."""
    identity = tfds.core.DatasetIdentity(
        name=inventory.name,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features(inventory),
        citation=inventory.citation,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    checksums: dict[str, int] = {}
    problems: Findings = collections.defaultdict(dict)

    def usable() -> Iterator[dict[str, Any]]:
        total = len(inventory.rows)
        for row, record, kind, error in track(_encoded(inventory, size), "writing", total):
            if error:
                problems[kind][row.image_id] = error
            else:
                checksums[row.image_id] = _checksum(record)
                yield record

    writer = tfds.core.SequentialWriter(info, _RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits([SPLIT])
    # One call: each call writes the metadata anew. It takes any iterable, hence a stream.
    writer.add_examples({SPLIT: usable()})
    writer.close_all()
    return checksums, dict(problems)


def _encoded(inventory: SourceIndex, size: int | None) -> Iterator[tuple[Row, dict, str, str]]:
    """Encodes rows in threads, in order, with a bounded number of images in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            columns = inventory.columns
            for row in inventory.rows:
                waiting.append(pool.submit(_encode, row, columns, size))
                if len(waiting) >= 4 * (workers or 1):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(
    row: Row, columns: Collection[str], size: int | None
) -> tuple[Row, dict[str, Any], str, str]:
    """Returns the row and its record, or instead of that a kind of problem and what it is."""
    kind = "unreadable_image"
    mask = marked = images.blank_mask()
    try:
        image, given, stored = images.encode_image(row.image, size)
        if row.mask:
            kind = "unusable_mask"
            mask = images.encode_mask(row.mask, row.image, given, stored)
        if row.attributes:
            kind = "unusable_attributes"
            marked = attributes.encode(row.attributes, row.image, given, stored)
    except InputError as error:
        return row, {}, kind, str(error)
    record = {
        "image": image,
        "mask": mask,
        "label": row.dx,
        **{name: getattr(row, name) for name in columns if name != "dx"},
    }
    if "has_attributes" in columns:
        record["attributes"] = marked
    return row, record, "", ""


def _checksum(record: Mapping[str, Any]) -> int:
    of_image = zlib.crc32(record["mask"], zlib.crc32(record["image"]))
    return zlib.crc32(record.get("attributes", b""), of_image)


def _verify(
    inventory: SourceIndex, folder: Path, written: Mapping[str, int], track: Track
) -> dict[str, Any]:
    """Reads every record back, compares, and writes the index from what the records say."""
    records = open_records(folder)
    if len(records) != len(written):
        raise RuntimeError(f"{folder}: wrote {len(written)} records, read {len(records)}")
    lesions = set()
    columns = inventory.columns
    counts = {name: collections.Counter[str]() for name in ("dx", "part")}
    masks = marked = 0
    with (folder / INDEX).open("w", encoding="utf-8", newline="") as file:
        index = csv.writer(file, lineterminator="\n")
        index.writerow(columns)
        for i, image_id in enumerate(track(written, "verifying", len(written))):
            record = records[i]
            if record["image_id"] != image_id.encode() or _checksum(record) != written[image_id]:
                raise RuntimeError(f"{folder}: record {i} is not the {image_id} that was written")
            entry = _index_entry(record, columns, inventory.class_names)
            index.writerow(entry.values())
            for name, counter in counts.items():
                counter[entry.get(name, "")] += 1
            lesions.add(entry["lesion_id"])
            masks += entry["has_mask"]
            marked += entry.get("has_attributes", 0)
    classes = {name: counts["dx"][name] for name in inventory.class_names}
    report = {"images": len(written), "masks": masks, "lesions": len(lesions), "classes": classes}
    if "has_attributes" in columns:
        report["attributes"] = marked
    if "part" in columns:
        report["parts"] = dict(counts["part"])
    return report


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
