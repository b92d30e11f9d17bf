"""Writes ``benchmarks/README.md``, from its template, and the speeds in ``docs/performance.md``.

    python -m benchmarks.render [--check]

With ``--check`` nothing is written.
"""

import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, tables
from jaxattn.errors import invalid

HERE = Path(__file__).parent
#: The page with the short table of speeds, between these two lines.
PERFORMANCE = HERE.parent / "docs" / "performance.md"
SPEEDS = ("<!-- speeds, written by benchmarks/render.py -->\n", "<!-- end of speeds -->\n")

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def read(folder: Path) -> Results:
    """The results in a folder by benchmark, in the order of the page and of the files' names.

    Raises:
        InputError: A file is not the result of a benchmark.
    """
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in tables.TABLES}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise invalid(str(path), "the JSON of a benchmark", error) from error
        name = result.get("benchmark") if isinstance(result, dict) else None
        if name not in found:
            raise invalid(f"{path}, benchmark", f"one of {', '.join(found)}", repr(name))
        found[name].append(result)
    return {name: each for name, each in found.items() if each}


def commands(result: Mapping[str, Any]) -> str:
    """The command of the result, or of each of its rows, with the commit of the code."""
    runs = [row for row in result["rows"] if "command" in row] if "rows" in result else []
    lines = (
        each["command"] + (f"  # at {each['commit']}" if "commit" in each else "")
        for each in runs or [result]
    )
    return textwrap.indent("\n".join(dict.fromkeys(lines)), "    ")


def page(results: Results) -> str:
    """The whole page: in the template, ``{NAME}`` becomes the results of a benchmark."""

    def filled(found: re.Match[str]) -> str:
        name = found[1]
        if name == "goals":
            return tables.all_goals(each for of_name in results.values() for each in of_name)
        parts = [
            part
            for each in results.get(name, ())
            for part in (
                commands(each),
                tables.on_machine(each["machine"]),
                tables.TABLES[name](each),
            )
        ]
        return "\n\n".join(parts) or "Not measured yet."

    template = (HERE / "template.md").read_text(encoding="utf-8")
    return re.sub(r"^\{(\w+)\}$", filled, template, flags=re.MULTILINE)


def with_speeds(text: str, results: Results) -> str:
    """The text with each machine's speeds of training steps between the lines `SPEEDS`.

    Raises:
        InputError: The lines are missing.
    """
    before, begin, rest = text.partition(SPEEDS[0])
    _, end, after = rest.partition(SPEEDS[1])
    if not end:
        lines = " and ".join(line.strip() for line in SPEEDS)
        raise invalid(PERFORMANCE.name, f"the lines {lines}", "a page without them")
    parts = [
        f"{tables.speeds(each)}\n\n{tables.on_machine(each['machine'])}\n"
        for each in results.get("train_step", ())
    ]
    return before + begin + "\n" + "\n".join(parts) + "\n" + end + after


def run(check: bool = False) -> None:
    """Writes the pages.

    Args:
        check: Only check whether the pages are up to date; exit status 1 means that one is not.
    """
    results = read(Path(os.environ.get("JAXATTN_RESULTS", measure.RESULTS)))
    pages = {HERE / "README.md": page(results)}
    if PERFORMANCE.is_file():
        pages[PERFORMANCE] = with_speeds(PERFORMANCE.read_text(encoding="utf-8"), results)
    for path, text in pages.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is not up to date; run python -m benchmarks.render")


if __name__ == "__main__":
    measure.command_line(run)
