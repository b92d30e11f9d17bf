"""Finished runs as a table: over seeds, beside baselines, or beside published numbers.

``benchmarks/README.md`` says what each kind of table shows.

    python -m benchmarks.runs --kind=yan --name=yan2019 --runs=$(ls -d runs/yan2019/* | paste -sd,)
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import measure, tables
from benchmarks.goals import lookup
from jaxattn import evaluate, metrics, reference_results, run_dir
from jaxattn.data import load
from jaxattn.errors import invalid, unknown

Row = dict[str, Any]
DIFFERENCE = "bfloat16 - float32"


class Kind(NamedTuple):
    """A kind of table.

    Attributes:
        columns: Path of each column's value in a run's evaluation.
        note: A remark on the table.
        percent: Whether to show values in per cent.
        baselines: Whether to add baselines.
        published: Whether to add published numbers.
    """

    columns: dict[str, str]
    note: str = ""
    percent: bool = False
    baselines: bool = False
    published: bool = False


KINDS = {
    "seeds": Kind(
        {
            "balanced accuracy": "metrics/balanced_accuracy",
            "macro AUC": "metrics/macro/auc",
            "accuracy": "metrics/accuracy",
        },
        baselines=True,
    ),
    "gessert": Kind(
        {
            "MC-sensitivity": "metrics/balanced_accuracy",
            "MC-specificity": "metrics/specificity",
            "F1 (weighted)": "metrics/weighted/f1",
            "mean AUC": "metrics/macro/auc",
        },
        note="One fold, one seed.",
        percent=True,
    ),
    "lite0": Kind(
        {
            "balanced accuracy": "metrics/balanced_accuracy",
            "macro AUC": "metrics/macro/auc",
            "melanoma, sensitivity at 80% specificity": (
                "metrics/per_class/mel/sensitivity_at_specificity"
            ),
            "Jaccard soft_attention": "jaccard/mean/soft_attention",
            "Jaccard gate": "jaccard/mean/gate",
        },
        note="Jaccard indices: the map, cut at half its range, and the lesion mask.",
    ),
    "yan": Kind(
        {
            "AP": "target/average_precision",
            "AUC": "target/auc",
            "Jaccard attention_pool3": "jaccard/mean/attention_pool3",
            "Jaccard attention_pool4": "jaccard/mean/attention_pool4",
            "Jaccard cam": "jaccard/mean/cam",
        },
        note="Jaccard indices: the test part, or the validation part if only that has masks. In "
        "brackets: published, with ImageNet's weights.",
        published=True,
    ),
}


def compare(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows with the difference of bfloat16's and float32's means, if there are two runs of each.

    ``closeness`` is minus the distance in standard errors.
    """
    of = {
        dtype: [row["values"] for row in rows if row["row"].endswith(f", {dtype}")]
        for dtype in ("bfloat16", "float32")
    }
    if min(map(len, of.values())) < 2:
        return
    for metric in of["float32"][0]:
        half, full = ([values[metric] for values in each] for each in of.values())
        error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (half, full)))
        apart = statistics.mean(half) - statistics.mean(full)
        closeness = -abs(apart) / max(error, 1e-9)
        yield {"row": DIFFERENCE, "metric": metric, "difference": apart, "closeness": closeness}


def collect(folder: Path, kind: Kind) -> Iterator[Row]:
    """The row of a run, and those of the baselines on its split.

    Raises:
        InputError: The run is not finished.
    """
    parts = {
        path.stem: json.loads(path.read_text())
        for path in (folder / evaluate.FOLDER).glob("*.json")
    }
    if "test" not in parts:
        raise invalid(str(folder), "a finished and evaluated run", "none")
    result, config = parts["test"], run_dir.read_config(folder)
    result["jaccard"] = result.get("jaccard") or lookup(parts, "validation/jaccard")
    spent = (folder / run_dir.LOG).stat().st_mtime - (folder / run_dir.CONFIG).stat().st_mtime
    seeds = {"seed": config.seed, "split_seed": config.split.seed}
    name = f"{config.model.name}, {config.dtype}" if kind.baselines else folder.name
    row = {
        "row": name,
        "values": {column: lookup(result, path) for column, path in kind.columns.items()},
        **seeds,
        "epochs": config.epochs,
        "minutes": spent / 60,
        "test_images": result["images"],
        "device": result["device"],
        "versions": result["versions"],
    }
    if kind.published:
        found = reference_results.for_run(config, result["dataset"]) or {}
        paper = found | {"metrics": found}  # measures lie at the top of a reference result
        row["reference"] = {column: lookup(paper, path) for column, path in kind.columns.items()}
    yield row
    for baseline, of in (baselines(config) if kind.baselines else {}).items():
        values = {column: lookup({"metrics": of}, path) for column, path in kind.columns.items()}
        yield {"row": baseline, "values": values, **seeds}


def baselines(config: ConfigDict) -> dict[str, Row]:
    """Metrics of the baselines on the test part of a config's split."""
    dataset, split = load.load_split(config)
    labels, records = dataset.labels, dataset.records
    pixels = np.stack(
        [
            np.asarray(Image.fromarray(records[row]["image"]).resize((8, 8), Image.Resampling.BOX))
            for row in range(len(dataset))
        ]
    ).reshape(len(labels), -1)
    train, test = split["train"], split["test"]
    regression = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced", C=0.01)
    )
    regression.fit(pixels[train], labels[train])
    majority = np.bincount(labels[train], minlength=len(dataset.class_names)) / len(train)
    predictions = {
        "majority vote": np.tile(majority, (len(test), 1)),
        "logistic regression, 8x8 pixels": regression.predict_proba(pixels[test]),
    }
    return {
        name: metrics.classification(labels[test], p, dataset.class_names)
        for name, p in predictions.items()
    }


def run(name: str, runs: tuple[str, ...], kind: str = "seeds") -> None:
    """Collects the runs and writes the result.

    Args:
        name: Name of the result file.
        runs: Folders of finished runs.
        kind: One of ``KINDS``.
    """
    if kind not in KINDS:
        raise unknown("--kind", kind, KINDS)
    of = KINDS[kind]
    rows = [row for folder in runs for row in collect(Path(folder), of)]
    rows += compare(rows)
    result = measure.write("runs", rows, name=name, percent=of.percent, note=of.note)
    print(tables.runs(result))


if __name__ == "__main__":
    measure.command_line(run)
