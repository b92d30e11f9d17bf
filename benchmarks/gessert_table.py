"""The input strategies of Gessert et al. 2019 side by side, from finished runs of one fold.

    python benchmarks/gessert_table.py --runs=runs/gessert2019_small

takes the runs in that folder, one for each strategy and named after it, as
``configs/gessert2019_small.py`` says, and writes ``gessert2019_small.json`` and a table,
``gessert2019_small.md``, into ``benchmarks/results``.
"""

import json
import os
import platform
from pathlib import Path

from absl import flags

from jaxattn import folds, runs
from jaxattn.errors import InputError, run_main

RESULTS = Path(__file__).parent / "results"


def collect(folder: Path) -> dict:
    """One run: what it reached, what it trained on, and its minutes of training."""
    path = folder / "evaluation" / "test.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; a finished and evaluated run wanted")
    result, config = json.loads(path.read_text()), runs.read_config(folder)
    spent = (folder / runs.LOG).stat().st_mtime - (folder / runs.CONFIG).stat().st_mtime
    return {
        "strategy": folder.name,
        "crops": config.crops.to_dict(),
        "model": config.model.to_dict(),
        "epochs": config.epochs,
        "split": config.split.to_dict(),
        "minutes": spent / 60,
        "test_images": result["images"],
        "device": result["device"],
        "versions": result["versions"],
        "measures": {name: measure(result["metrics"]) for name, measure in folds.MEASURES.items()},
    }


def table(collected: list[dict]) -> str:
    """Markdown: a row for each strategy, in per cent as in the paper."""
    head = [*folds.MEASURES, "epochs", "minutes"]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for one in collected:
        measures = (f"{100 * value:.1f}" for value in one["measures"].values())
        cells = [*measures, str(one["epochs"]), f"{one['minutes']:.0f}"]
        lines.append(f"| {one['strategy']} | {' | '.join(cells)} |")
    first = collected[0]
    lines += [
        "",
        f"Test part of one fold ({first['test_images']} images, split seed "
        f"{first['split']['seed']}), one seed, {os.cpu_count()} cores ({platform.machine()}; "
        f"{first['device']}; jax {first['versions']['jax']}).",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    folder = Path(flags.FLAGS.runs)
    found = sorted(path.parent for path in folder.glob(f"*/{runs.CONFIG}"))
    if not found:
        raise InputError(f"{folder}: no runs there, one for each strategy wanted")
    collected = [collect(path) for path in found]
    name = RESULTS / "gessert2019_small"
    runs.write_json(name.with_suffix(".json"), {"cores": os.cpu_count(), "runs": collected})
    name.with_suffix(".md").write_text(table(collected))
    print(table(collected), end="")


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "Folder of finished runs.", required=True)
    run_main(main)
