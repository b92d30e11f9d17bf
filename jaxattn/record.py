"""Records what a run was computed with: ``run.json`` in its folder."""

import contextlib
import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxattn import files, run_dir
from jaxattn.errors import InputError

NAME = "run.json"


@contextlib.contextmanager
def session(folder: Path, facts: Mapping[str, Any], step: int) -> Iterator[dict[str, Any]]:
    """Records one session of a run: from a start, or a resumption, until it ends.

    Args:
        folder: The run's folder.
        facts: What is true of the whole run: seed, parameters, images of each part.
        step: Steps taken before.

    Yields:
        The session's entry, to add ``last_step`` to. A session that was killed has no ``end``.
    """
    start = datetime.datetime.now(datetime.UTC)
    entry: dict[str, Any] = {
        "start": start.isoformat(timespec="seconds"),
        "first_step": step,
        "device": run_dir.device(),
        "processes": jax.process_count(),
        "versions": run_dir.versions(),
        "commit": run_dir.commit(),
    }
    before = _sessions(folder / NAME)
    _write(folder, facts, [*before, entry])
    try:
        yield entry
    finally:
        end = datetime.datetime.now(datetime.UTC)
        entry["end"] = end.isoformat(timespec="seconds")
        entry["seconds"] = round((end - start).total_seconds(), 1)
        with contextlib.suppress(InputError):  # on a full disk, which has been said
            _write(folder, facts, [*before, entry])


def _sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions so far; none if the file is damaged, as nothing depends on it."""
    try:
        return list(json.loads(path.read_text())["sessions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(folder: Path, facts: Mapping[str, Any], sessions: list[dict[str, Any]]) -> None:
    if jax.process_index() == 0:
        files.write_json(folder / NAME, {**facts, "sessions": sessions})
