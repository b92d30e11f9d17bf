r"""What a config reaches over several seeds, beside two baselines on the same splits.

    python benchmarks/seeds.py --name=ham_small --runs=runs/seed0,runs/seed1,runs/seed2

Finished runs of one config are taken, each with its own seeds, and the baselines are fitted on the
training part of each run's split: the commonest class for every image; logistic regression, classes
balanced, on the images' pixels averaged down to 8x8.

Runs may also differ in the type of their activations. Then bfloat16 is held against float32: its
mean must lie within two standard errors of the difference, as the seeds scatter.

    for seed in 0 1 2; do for dtype in float32 bfloat16; do
      python -m jaxattn.train --config=configs/quickstart.py \
        --workdir=runs/precision/$dtype$seed --config.seed=$seed --config.dtype=$dtype \
        --config.epochs=8 --config.cpu_devices=1
    done; done
    python benchmarks/seeds.py --name=precision --runs=$(ls -d runs/precision/* | paste -sd,)
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from absl import flags
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import measure
from jaxattn import experiment, metrics, run_dir
from jaxattn.errors import InputError
from jaxattn.cli import run_main

NAME = "seeds"
MEASURES = {
    "balanced accuracy": lambda m: m["balanced_accuracy"],
    "macro AUC": lambda m: m["macro"]["auc"],
    "accuracy": lambda m: m["accuracy"],
}


def baselines(folder: Path) -> dict[str, dict]:
    """Metrics of the baselines on the test part of a run's split."""
    built = experiment.build(run_dir.read_config(folder))
    labels, records = built.dataset.labels, built.dataset.records
    pixels = np.stack(
        [
            np.asarray(Image.fromarray(records[row]["image"]).resize((8, 8), Image.Resampling.BOX))
            for row in range(len(built.dataset))
        ]
    ).reshape(len(labels), -1)
    train, test = built.split["train"], built.split["test"]
    regression = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced", C=0.01)
    )
    regression.fit(pixels[train], labels[train])
    classes = len(built.dataset.class_names)
    majority = np.bincount(labels[train], minlength=classes) / len(train)
    predictions = {
        "majority vote": np.tile(majority, (len(test), 1)),
        "logistic regression, 8x8 pixels": regression.predict_proba(pixels[test]),
    }
    return {
        name: metrics.classification(labels[test], p, built.dataset.class_names)
        for name, p in predictions.items()
    }


def collect(folder: Path) -> dict:
    """One run: its metrics, its seeds, its minutes of training, and the baselines."""
    path = folder / "evaluation" / "test.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; a finished and evaluated run wanted")
    result, config = json.loads(path.read_text()), run_dir.read_config(folder)
    spent = (folder / run_dir.LOG).stat().st_mtime - (folder / run_dir.CONFIG).stat().st_mtime
    return {
        "seed": config.seed,
        "split_seed": config.split.seed,
        "minutes": spent / 60,
        "test_images": result["images"],
        "device": result["device"],
        "versions": result["versions"],
        "rows": {
            f"{config.model.name}, {config.dtype}": result["metrics"],
            **baselines(folder),
        },
    }


def values(result: Mapping[str, Any], row: str, of: str) -> list[float]:
    """What a predictor reaches in each run that has it."""
    return [MEASURES[of](one["rows"][row]) for one in result["rows"] if row in one["rows"]]


def difference(result: Mapping[str, Any], of: str) -> tuple[float, float] | None:
    """bfloat16's mean less float32's, and its standard error; None without two runs of each."""
    names = {name.rpartition(", ")[2]: name for one in result["rows"] for name in one["rows"]}
    if not {"bfloat16", "float32"} <= names.keys():
        return None
    half, full = (values(result, names[each], of) for each in ("bfloat16", "float32"))
    if min(len(half), len(full)) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (half, full)))
    return statistics.mean(half) - statistics.mean(full), error


def goals(result: Mapping[str, Any]) -> list[measure.Goal]:
    """That bfloat16's mean is float32's, as far as the seeds can say."""
    found = []
    for of in MEASURES:
        if both := difference(result, of):
            apart, error = both
            what = "bfloat16 less float32 at most two standard errors"
            found.append(measure.Goal(what, of, apart, abs(apart) <= 2 * error))
    return found


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each predictor, mean and standard deviation over the seeds."""
    collected = result["rows"]
    lines = [f"| | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for row in dict.fromkeys(name for one in collected for name in one["rows"]):
        cells = []
        for of in MEASURES:
            found = values(result, row, of)
            spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    seeds = [f"{one['seed']} and {one['split_seed']}" for one in collected]
    minutes = ", ".join(f"{one['minutes']:.1f}" for one in collected)
    first = collected[0]
    lines += [
        "",
        f"Test part, mean ± standard deviation over the runs; seed and seed of the split: "
        f"{', '.join(seeds)}. "
        f"Training took {minutes} minutes on {first['device']}, jax {first['versions']['jax']}.",
        "",
    ]
    lines += [f"- {goal.case}, {goal.verdict}: {goal.value:+.4f}." for goal in goals(result)]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    collected = [collect(Path(folder)) for folder in flags.FLAGS.runs]
    measure.write(flags.FLAGS.name, collected, benchmark=NAME)
    print(table({"rows": collected}), end="")


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Name of the result file.", required=True)
    flags.DEFINE_list("runs", None, "Folders of finished runs.", required=True)
    run_main(main)
