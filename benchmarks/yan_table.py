"""Tables 2 and 3 of Yan et al. 2019 from finished runs, beside the published numbers.

    python benchmarks/yan_table.py --runs=runs/yan2019

The runs in that folder are taken, each named after its row as ``configs/yan2019.py`` says. Average
precision and AUC are those of the test part; Jaccard indices too where it has masks, else those of
the validation part, for which ``python -m jaxattn.evaluate --split=validation`` is to be run as
well.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags

from benchmarks import measure
from jaxattn import reference_results, run_dir
from jaxattn.errors import InputError
from jaxattn.cli import run_main
from jaxattn.metrics import number

NAME = "yan_table"
MAPS = ("attention_pool3", "attention_pool4", "cam")


def collect(folder: Path) -> dict[str, Any]:
    """One run: what it reached and what it was trained with."""
    results = {
        part: json.loads(path.read_text())
        for part in ("test", "validation")
        if (path := folder / "evaluation" / f"{part}.json").is_file()
    }
    if not results.get("test", {}).get("positive"):
        raise InputError(f"{folder}: an evaluated run of configs/yan2019.py wanted")
    test, config = results["test"], run_dir.read_config(folder)
    parts = [part for part in ("test", "validation") if results.get(part, {}).get("jaccard")]
    jaccard = results[parts[0]]["jaccard"] if parts else {"images": 0, "mean": {}}
    return {
        "row": folder.name,
        "model": config.model.to_dict(),
        "loss": config.loss.to_dict(),
        "image_size": config.crops.size,
        "epochs": config.epochs,
        "seed": config.seed,
        "step": test["step"],
        "dataset": test["dataset"],
        "test_images": test["images"],
        "positive": test["positive"],
        "jaccard": jaccard | {"part": parts[0] if parts else ""},
        "device": test["device"],
        "versions": test["versions"],
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each run, ours and in brackets what was published."""
    collected = result["rows"]
    head = ["AP", "AUC", *(f"Jaccard {name}" for name in MAPS)]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for one in collected:
        paper = reference_results.find(one["dataset"], "official", one["row"]) or {}
        theirs = paper.get("target", {}) | paper.get("jaccard", {}).get("mean", {})
        measured = one["positive"] | one["jaccard"]["mean"]
        cells = [
            f"{number(measured.get(name))} ({number(theirs.get(name))})"
            for name in ("average_precision", "auc", *MAPS)
        ]
        lines.append(f"| {one['row']} | {' | '.join(cells)} |")
    first, parts = collected[0], sorted({one["jaccard"]["part"] for one in collected} - {""})
    of_maps = max(one["jaccard"]["images"] for one in collected)
    lines += [
        "",
        f"AP and AUC of {first['positive']['class']}: test part ({first['test_images']} images). "
        f"Jaccard index: {' and '.join(parts) or 'no'} part ({of_maps} images with a mask). In "
        f"brackets: published, with ImageNet's weights. One seed, {first['epochs']} epochs, "
        f"{first['image_size']} pixels; {first['device']}, jax {first['versions']['jax']}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    folder = Path(flags.FLAGS.runs)
    rows = [entry["row"] for entry in reference_results.table("yan2019", "2")]
    found = {path.parent.name: path.parent for path in folder.glob(f"*/{run_dir.CONFIG}")}
    known = [found[row] for row in rows if row in found]
    if not known:
        raise InputError(f"{folder}: no runs there that are called {', '.join(rows)}")
    collected = [collect(path) for path in known]
    measure.write("yan2019", collected, benchmark=NAME)
    print(table({"rows": collected}), end="")


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "Folder of finished runs.", required=True)
    run_main(main)
