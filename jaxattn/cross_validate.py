"""Trains and evaluates every fold: ``python -m jaxattn.cross_validate --config=...``.

Each fold is a run in its own folder; the same command run again resumes where it stopped. The
summary is that of the tables of Gessert et al. 2019: mean ± standard deviation over the folds of
each measure on the test part, which is the same for all folds.
"""

from jaxattn import signals

if __name__ == "__main__":
    signals.install()  # before the imports below, which take seconds

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxattn import cli, evaluate, files, run_dir, runtime, train
from jaxattn import config as configs
from jaxattn.errors import invalid
from jaxattn.reading import read_json

SUMMARY = "folds.json"
TABLE = "folds.md"

#: The columns of the paper's tables, and the AUC that its text gives.
MEASURES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "MC-sensitivity": lambda metrics: metrics["balanced_accuracy"],
    "MC-specificity": lambda metrics: metrics["specificity"],
    "F1 (weighted)": lambda metrics: metrics["weighted"]["f1"],
    "mean AUC": lambda metrics: metrics["macro"]["auc"],
}


def run(
    config: ConfigDict, folder: Path, stop: Callable[[int], bool] = lambda step: False
) -> list[dict[str, Any]] | None:
    """Trains and evaluates the folds that are not done yet.

    Args:
        config: A config whose ``split.strategy`` is ``folds``; ``split.fold`` is ignored.
        folder: The folder of all folds; fold i is the run in ``fold_i``.
        stop: See `train.train`.

    Returns:
        The evaluation of each fold on the test part, or None if it was stopped.

    Raises:
        InputError: ``split.strategy`` is not ``folds``; or see `train.train`.
    """
    if config.split.strategy != "folds":
        raise invalid("split.strategy", "'folds'", repr(config.split.strategy))
    results = []
    for fold in range(config.split.folds):
        own = config.copy_and_resolve_references()
        own.split.fold = fold
        place = folder / f"fold_{fold}"
        print(f"fold {fold} of {config.split.folds}: {place}", flush=True)
        if not train.train(own, place, stop):
            return None
        done = place / evaluate.FOLDER / "test.json"
        if not done.is_file():
            evaluate.evaluate(place)
            evaluate.write_report(place)
        results.append(read_json(done).object())
    return results


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of each measure, and of each class's AUC, over the folds.

    Args:
        results: What `evaluate.evaluate` returned for each fold; two or more.

    Returns:
        By name: ``mean``, ``deviation``, ``population_deviation`` (divisor n, as Gessert et al.
        2019 print it) and ``values``, one per fold; None where a fold has none.
    """
    columns = {
        name: [measure(result["metrics"]) for result in results]
        for name, measure in MEASURES.items()
    }
    for label in results[0]["metrics"]["per_class"]:
        columns[f"AUC {label}"] = [r["metrics"]["per_class"][label]["auc"] for r in results]
    found = {}
    for name, values in columns.items():
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        found[name] = {
            "mean": statistics.mean(known) if whole else None,
            "deviation": statistics.stdev(known) if whole and len(known) > 1 else None,
            "population_deviation": statistics.pstdev(known) if whole else None,
            "values": values,
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table in per cent, to one decimal as in the paper."""
    lines = ["| measure | mean ± deviation (n - 1) | ± as the paper's (n) | folds |"]
    lines.append("|---|---|---|---|")
    for name, row in found.items():
        values = ", ".join("-" if v is None else f"{100 * v:.1f}" for v in row["values"])
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
        mean = "-" if row["mean"] is None else f"{100 * row['mean']:.1f}"
        population = row["population_deviation"]
        published = "-" if population is None else f"± {100 * population:.1f}"
        lines.append(f"| {name} | {mean}{spread} | {published} | {values} |")
    return "\n".join(lines) + "\n"


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_config_flags("The folder of all folds; by default runs/CONFIG.")
    cli.define_deterministic_flag()


def main(argv: list[str]) -> int:
    """The command line; returns the exit status, see `train.main`."""
    del argv
    config, folder = configs.resolved(flags.FLAGS.config), cli.workdir()
    runtime.setup(config.cpu_devices, flags.FLAGS.deterministic)
    signals.describe(f"the same command resumes {folder}")
    results = run(config, folder, lambda step: signals.requested())
    if results is None:
        print(f"stopped; the same command resumes {folder}")
        return signals.STOPPED
    found = summary(results)
    run_dir.write_json(folder / SUMMARY, {"folds": len(results), "measures": found})
    files.write_text(folder / TABLE, table(found))
    print(table(found), end="")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
