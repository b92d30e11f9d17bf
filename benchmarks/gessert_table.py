"""The input strategies of Gessert et al. 2019 side by side, from finished runs of one fold.

    python benchmarks/gessert_table.py --runs=runs/gessert2019_small

The runs in that folder are taken, one for each strategy and named after it, as
``configs/gessert2019_small.py`` says.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags

from benchmarks import measure
from jaxattn import cross_validate, run_dir
from jaxattn.errors import InputError
from jaxattn.cli import run_main

NAME = "gessert_table"


def collect(folder: Path) -> dict:
    """One run: what it reached, what it trained on, and its minutes of training."""
    path = folder / "evaluation" / "test.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; a finished and evaluated run wanted")
    result, config = json.loads(path.read_text()), run_dir.read_config(folder)
    spent = (folder / run_dir.LOG).stat().st_mtime - (folder / run_dir.CONFIG).stat().st_mtime
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
        "measures": {
            name: measure(result["metrics"]) for name, measure in cross_validate.MEASURES.items()
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each strategy, in per cent as in the paper."""
    collected = result["rows"]
    head = [*cross_validate.MEASURES, "epochs", "minutes"]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for one in collected:
        measures = (f"{100 * value:.1f}" for value in one["measures"].values())
        cells = [*measures, str(one["epochs"]), f"{one['minutes']:.0f}"]
        lines.append(f"| {one['strategy']} | {' | '.join(cells)} |")
    first = collected[0]
    lines += [
        "",
        f"Test part of one fold ({first['test_images']} images, split seed "
        f"{first['split']['seed']}), one seed, {first['device']}, jax {first['versions']['jax']}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    folder = Path(flags.FLAGS.runs)
    found = sorted(path.parent for path in folder.glob(f"*/{run_dir.CONFIG}"))
    if not found:
        raise InputError(f"{folder}: no runs there, one for each strategy wanted")
    collected = [collect(path) for path in found]
    measure.write("gessert2019_small", collected, benchmark=NAME)
    print(table({"rows": collected}), end="")


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "Folder of finished runs.", required=True)
    run_main(main)
