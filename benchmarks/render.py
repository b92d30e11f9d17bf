"""Makes ``benchmarks/README.md`` of the preface and all results: no number is typed by hand.

    python benchmarks/render.py [--check]

The table of speeds in the project's ``README.md``, between two comments, is made too. With
``--check`` nothing is written: exit status 1 says that a file is not what the results give.
"""

import importlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags

from benchmarks import measure
from jaxattn.errors import InputError
from jaxattn.cli import run_main

HERE = Path(__file__).parent
#: Between these lines of the project's README.md stand the speeds of training steps.
SPEEDS = ("<!-- speeds, by benchmarks/render.py -->\n", "<!-- end of speeds -->\n")
#: The benchmarks in the order of the page; a result names its own by ``benchmark``.
BENCHMARKS = (
    "attention_kernel",
    "train_step",
    "input_pipeline",
    "scaling",
    "grouped_conv",
    "patch_throughput",
    "parity",
    "seeds",
    "gessert_table",
    "yan_table",
)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results in a folder by benchmark, each benchmark's in the order of their files' names.

    Raises:
        InputError: A file is no result of a benchmark.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: {error}; the JSON of a benchmark wanted") from error
        name = result.get("benchmark") if isinstance(result, dict) else None
        if name not in BENCHMARKS:
            raise InputError(f"{path}: benchmark is {name!r}, one of {BENCHMARKS} wanted")
        found.setdefault(name, []).append(result)
    return {name: found[name] for name in BENCHMARKS if name in found}


def described(module: ModuleType) -> list[str]:
    """A heading and what the module says of itself, without its command lines."""
    first, *rest = inspect.cleandoc(module.__doc__ or module.__name__).split("\n\n")
    file = Path(module.__file__ or "").name
    heading = f"## [{file}]({file}): {' '.join(first.split()).rstrip('.')}"
    return [heading, *(part for part in rest if not part.startswith("    "))]


def on_machine(machine: Mapping[str, Any]) -> str:
    """A machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = f"{machine['device']}; {machine['processor']}, {machine['cores']} cores; {versions}"
    if "load_before" in machine:
        facts += f"; load {machine['load_before']:.1f}"
    return facts + "."


def goals(results: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """A heading and a table of all goals, and how many cases reached each."""
    lines = ["| benchmark, device | goal | reached | missed |", "|---|---|---|---|"]
    for name, of_it in results.items():
        module = importlib.import_module(f"benchmarks.{name}")
        if not hasattr(module, "goals"):
            continue
        for result in of_it:
            found: list[measure.Goal] = module.goals(result)
            for what in dict.fromkeys(goal.what for goal in found):
                cases = [goal for goal in found if goal.what == what]
                missed = [f"{goal.case}: {goal.value:.3g}" for goal in cases if not goal.reached]
                reached = [goal.value for goal in cases if goal.reached]
                values = f": {measure.span(reached)}" if reached else ""
                lines.append(
                    f"| {name}, {result['machine']['device']} | {what} "
                    f"| {len(reached)} of {len(cases)}{values} | {'; '.join(missed)} |"
                )
    return ["## Goals", "\n".join(lines)]


def commands(result: Mapping[str, Any]) -> str:
    """The command of the result, or of each of its rows, with the commit of the code."""
    runs = [row for row in result.get("rows", ()) if "command" in row] or [result]
    lines = (
        each["command"] + (f"  # at {each['commit']}" if "commit" in each else "") for each in runs
    )
    return textwrap.indent("\n".join(dict.fromkeys(lines)), "    ")


def page(folder: Path) -> str:
    """The whole page of the results in a folder."""
    results = read(folder)
    parts = [(HERE / "preface.md").read_text(encoding="utf-8").strip(), *goals(results)]
    for name in results:
        module = importlib.import_module(f"benchmarks.{name}")
        parts += described(module)
        for result in results[name]:
            parts += [
                commands(result),
                on_machine(result["machine"]),
                module.table(result).strip(),
            ]
    return "\n\n".join(parts) + "\n"


def with_speeds(text: str, results: Mapping[str, list[dict[str, Any]]]) -> str:
    """The text with the speeds of training steps, each machine's, between the lines `SPEEDS`.

    Raises:
        InputError: The lines are not there.
    """
    before, begin, rest = text.partition(SPEEDS[0])
    _, end, after = rest.partition(SPEEDS[1])
    if not end:
        raise InputError(f"README.md: the lines {SPEEDS} wanted, around the speeds")
    module = importlib.import_module("benchmarks.train_step")
    parts = [
        f"{module.summary(each)}\n\n{on_machine(each['machine'])}\n"
        for each in results.get("train_step", ())
    ]
    return before + begin + "\n" + "\n".join(parts) + "\n" + end + after


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    folder = Path(os.environ.get("JAXATTN_RESULTS", HERE / "results"))
    readme = HERE.parent / "README.md"
    speeds = with_speeds(readme.read_text(encoding="utf-8"), read(folder))
    for path, text in ((HERE / "README.md", page(folder)), (readme, speeds)):
        if not flags.FLAGS.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is not what the results give; run benchmarks/render.py")


if __name__ == "__main__":
    flags.DEFINE_bool("check", False, "Only look whether the page is up to date.")
    run_main(main)
