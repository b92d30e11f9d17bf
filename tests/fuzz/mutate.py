"""Damages files: as disks, networks and people do, and as somebody would who means harm."""

import io
import json
import random
import zipfile
from typing import Any

#: What somebody may write where a reader expects something else.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 10**30, -(10**30), 0.5, float("nan"), float("inf"), 1e308),
    *("", "x", "../../etc/passwd", "os.system", "<script>alert(1)</script>", "\x00", "é" * 5000),
    *([], {}, [[]], [None] * 100, {"a": {"b": {}}}),
)
_WORDS = (b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f", b"\x01" * 4)


def mutate(data: bytes, name: str, rng: random.Random) -> tuple[bytes, bool]:
    """Damages the content of a file.

    Args:
        data: The content.
        name: The file's name, by which its structure is known.
        rng: Chooses.

    Returns:
        Other content; and whether a checksum over the old one, if there is one, tells.
    """
    if name.endswith((".json", ".jsonl")) and rng.random() < 0.7:
        return _json(data, rng), True
    if data[:2] == b"PK" and rng.random() < 0.4:
        return _member(data, rng), False
    return _bytes(data, rng), True


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    at, other = (rng.randrange(len(data) + 1) for _ in range(2))
    length = min(len(data), int(2 ** rng.uniform(0, 12)))
    kind = rng.choice(("bits", "bits", "bits", "cut", "drop", "repeat", "zero", "word", "noise"))
    if kind == "bits":
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "drop":
        del changed[at : at + length]
    elif kind == "repeat":
        changed[at:at] = data[other : other + length]
    elif kind == "zero":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "word":
        word = rng.choice(_WORDS)
        changed[at : at + len(word)] = word
    else:
        changed[at : at + length] = rng.randbytes(length)
    return bytes(changed)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Replaces, drops or repeats a value somewhere in the file, or in one of its lines."""
    text = data.decode()
    try:
        return json.dumps(_changed(json.loads(text), rng)).encode()
    except ValueError:
        lines = text.splitlines()
    chosen = rng.randrange(len(lines))
    try:
        lines[chosen] = json.dumps(_changed(json.loads(lines[chosen]), rng))
    except ValueError:
        return _bytes(data, rng)
    return "\n".join(lines).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, what = rng.choice(keys), rng.random()
    if what < 0.1:
        del value[key]
    elif what < 0.15 and isinstance(value, list):
        value.insert(key, value[key])
    elif what < 0.2 and isinstance(value, dict):
        value[rng.choice(("", "x", f"{key}2"))] = value.pop(key)
    else:
        value[key] = _changed(value[key], rng)
    return value


def _member(data: bytes, rng: random.Random) -> bytes:
    """Damages what a zip archive holds, packed again with checksums that are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, what = rng.choice(list(members)), rng.random()
    if what < 0.1:
        del members[name]
    elif what < 0.2:
        members[name + "x"] = members.pop(name)
    elif what < 0.25:
        members[name] = bytes(rng.choice((10**6, 3 * 10**8)))
    else:
        members[name] = mutate(members[name], name, rng)[0]
    packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", packed, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
