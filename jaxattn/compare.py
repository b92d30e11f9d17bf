"""Compares runs on the same images: ``python -m jaxattn.compare RUN RUN...``.

Everything is computed from the predictions that ``python -m jaxattn.evaluate`` wrote.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from jaxattn import cli, metrics, run_dir
from jaxattn.data import splits
from jaxattn.errors import invalid
from jaxattn.evaluation import predictions, uncertainty
from jaxattn.evaluation.predictions import Predictions

#: The command line takes folders, not only flags.
POSITIONAL = True

#: Measures of all classes together, by path in `jaxattn.metrics.classification`.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "balanced accuracy": ("balanced_accuracy",),
    "accuracy": ("accuracy",),
    "macro AUC": ("macro", "auc"),
    "macro average precision": ("macro", "average_precision"),
    "macro F1": ("macro", "f1"),
    "MC-specificity": ("specificity",),
    "ECE": ("calibration", "ece"),
    "Brier score": ("calibration", "brier"),
}


def read(folders: Sequence[Path], part: str = "test") -> dict[str, Predictions]:
    """Predictions of runs by name: the shortest end of each path that tells it from the others.

    Raises:
        InputError: A run has no predictions, or fewer than two runs are given.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise invalid("runs to compare", "two or more folders", ", ".join(map(str, folders)))
    found = {}
    for name, folder in zip(names(folders), folders, strict=True):
        path = folder / "evaluation" / f"{part}_predictions.csv"
        if not path.is_file():
            command = f"python -m jaxattn.evaluate --run={folder} --split={part}"
            raise invalid(str(path), f"the predictions that {command} writes", "no file")
        found[name] = predictions.read(path)
    return found


def names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        ends = ["/".join(parts[-length:]) for parts in whole]
        if len(set(ends)) == len(ends):
            return ends
    raise invalid("runs", "different folders", ", ".join(map(str, folders)))


def aligned(found: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The same images in the same order, and the same classes.

    Raises:
        InputError: Runs have other images, classes or labels.
    """
    first_name, first = next(iter(found.items()))
    order = np.argsort(first.image_ids, kind="stable")
    result = {first_name: first.take(order)}
    for name, other in list(found.items())[1:]:
        expected = f"the classes of {first_name}: {', '.join(first.class_names)}"
        if set(other.class_names) != set(first.class_names):
            raise invalid(f"{name}, classes", expected, ", ".join(other.class_names))
        ids = set(first.image_ids.tolist()), set(other.image_ids.tolist())
        if ids[0] != ids[1]:
            given = f"{len(ids[0] - ids[1])} of them missing and {len(ids[1] - ids[0])} others"
            raise invalid(f"{name}, images", f"the {len(ids[0])} images of {first_name}", given)
        same = _in_order(other, first.class_names).take(np.argsort(other.image_ids, kind="stable"))
        differ = int((same.labels != result[first_name].labels).sum())
        if differ:
            raise invalid(f"{name}, labels", f"those of {first_name}", f"{differ} others")
        result[name] = same
    return result


def _in_order(found: Predictions, class_names: tuple[str, ...]) -> Predictions:
    """The same predictions with the classes in another order."""
    at = np.array([found.class_names.index(name) for name in class_names])
    return dataclasses.replace(
        found,
        class_names=class_names,
        labels=np.argsort(at)[found.labels],
        predictions=np.argsort(at)[found.predictions],
        probabilities=found.probabilities[:, at],
    )


def compare(
    found: Mapping[str, Predictions], resamples: int = uncertainty.RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Compares runs in pairs on the same images.

    Args:
        found: Predictions by run, `aligned`.
        resamples: Of the lesions, the same ones for all runs.
        seed: Of the bootstrap.

    Returns:
        ``images``, ``lesions``, ``method``, ``runs``: of each the ``MEASURES``, their ``intervals``
        and ``auc`` of each class; and ``pairs``, each with

        - ``first`` and ``second``; every difference is second minus first;
        - ``measures``: of each of ``MEASURES``, ``difference``, ``interval`` and ``p`` of the
          bootstrap over lesions;
        - ``mcnemar``: see `jaxattn.evaluation.uncertainty.McNemar`;
        - ``auc``: of each class ``difference``, ``interval``, ``p`` by DeLong over lesions, and
          ``p_holm``, corrected over the classes of all pairs.
    """
    images = next(iter(found.values()))
    lesions = images.lesions
    if lesions.max() < 1:
        raise invalid("runs to compare", "images of two or more lesions", "one lesion")
    values = {
        name: uncertainty.replicates(
            each, functools.partial(uncertainty.classification, each), resamples, seed
        )
        for name, each in found.items()
    }
    points = {
        name: metrics.classification(
            each.labels, each.probabilities, each.class_names, each.predictions
        )
        for name, each in found.items()
    }
    pairs = [
        _pair(first, second, found, values, points)
        for first, second in itertools.combinations(found, 2)
    ]
    tests = [row for pair in pairs for row in pair["auc"].values()]
    for row, p in zip(tests, uncertainty.holm([row["p"] for row in tests]), strict=True):
        row["p_holm"] = p
    return {
        "images": len(images),
        "lesions": int(lesions.max()) + 1,
        "method": uncertainty.method(resamples, int(lesions.max()) + 1, seed),
        "runs": {name: _run(points[name], values[name]) for name in found},
        "pairs": pairs,
    }


def _run(point: Mapping[str, Any], values: uncertainty.Replicates) -> dict[str, Any]:
    return {
        "measures": {name: at(point, path) for name, path in MEASURES.items()},
        "intervals": {name: uncertainty.interval(values[path]) for name, path in MEASURES.items()},
        "auc": {name: row["auc"] for name, row in point["per_class"].items()},
    }


def _pair(
    first: str,
    second: str,
    found: Mapping[str, Predictions],
    values: Mapping[str, uncertainty.Replicates],
    points: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    one, two = found[first], found[second]

    def change(path: tuple[str, ...]) -> dict[str, Any]:
        before, after = (at(points[name], path) for name in (first, second))
        spread = values[second][path] - values[first][path]
        known = before is not None and after is not None
        return {
            "difference": after - before if known else None,
            "interval": uncertainty.interval(spread) if known else None,
            "p": uncertainty.p_value(spread) if known else None,
        }

    auc = {}
    for c, name in enumerate(one.class_names):
        auc[name] = change(("per_class", name, "auc"))
        scores = np.stack([one.probabilities[:, c], two.probabilities[:, c]])
        tested = uncertainty.delong(one.labels == c, scores, one.lesions)
        auc[name]["p"] = tested.difference(0, 1)[1] if tested else None
    right = (each.labels == each.predictions for each in (one, two))
    return {
        "first": first,
        "second": second,
        "measures": {name: change(path) for name, path in MEASURES.items()},
        "mcnemar": uncertainty.mcnemar(*right)._asdict(),
        "auc": auc,
    }


def aggregate(
    found: Sequence[Predictions], resamples: int = uncertainty.RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean over seeds or folds of one method, with both sources of variation.

    Args:
        found: Predictions of each of k runs.
        resamples: Of the lesions.
        seed: Of the bootstrap.

    Returns:
        By measure of ``MEASURES``:

        - ``mean`` and ``values``, one per run;
        - ``deviation`` s between the runs (divisor k − 1), None for one run: what another seed,
          fold or split changes; ``population_deviation`` (divisor k), as some papers report it;
        - ``test_deviation`` t, the bootstrap's standard error of the mean from the test images,
          the models being what they are;
        - ``interval``, 95%, of the mean: its variance is s²/k + t² if all runs were tested on the
          same images, else s²/k, which holds both; the degrees of freedom are Satterthwaite's, t²
          having infinitely many. None for one run.

        None where a run lacks the measure.
    """
    found = [each.take(np.argsort(each.image_ids, kind="stable")) for each in found]
    ids = [each.image_ids.tolist() for each in found]
    shared = all(each == ids[0] for each in ids)
    points = [
        metrics.classification(each.labels, each.probabilities, each.class_names, each.predictions)
        for each in found
    ]
    values = [
        uncertainty.replicates(
            each,
            functools.partial(uncertainty.classification, each),
            resamples,
            # The same images are resampled together, others apart.
            seed + ids.index(own),
        )
        for each, own in zip(found, ids, strict=True)
    ]
    return {
        name: spread([at(point, path) for point in points], [v[path] for v in values], shared)
        for name, path in MEASURES.items()
    } | {"same_images": shared}


def spread(
    values: Sequence[float | None], replicates: Sequence[np.ndarray], shared: bool
) -> dict[str, Any]:
    """Both sources of variation of one measure, see `aggregate`.

    Args:
        values: Of each run.
        replicates: Its resamples, paired if images are shared.
        shared: Whether all runs were tested on the same images.
    """
    from scipy.stats import t

    found: dict[str, Any] = {"mean": None, "values": list(values), "deviation": None}
    found |= {"population_deviation": None, "test_deviation": None, "interval": None}
    if None in values:
        return found
    known, count = np.array(values, np.float64), len(values)
    means = np.stack(replicates).mean(axis=0)
    means = means[~np.isnan(means)]
    found["mean"] = float(known.mean())
    found["population_deviation"] = float(known.std())
    found["test_deviation"] = float(means.std()) if len(means) else None
    if count > 1 and len(means):
        found["deviation"] = float(known.std(ddof=1))
        between = known.var(ddof=1) / count
        within = means.var() if shared else 0.0
        if between + within == 0:
            found["interval"] = [found["mean"], found["mean"]]
        else:
            freedom = (between + within) ** 2 * (count - 1) / between**2 if between else np.inf
            reach = t.ppf((1 + uncertainty.LEVEL) / 2, freedom) * np.sqrt(between + within)
            found["interval"] = [float(known.mean() - reach), float(known.mean() + reach)]
    return found


def at(nested: Any, path: Sequence[str]) -> Any:
    """The value at a path of nested dicts."""
    for key in path:
        nested = nested[key]
    return nested


def table(result: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [f"{result['images']} images of {result['lesions']} lesions; {result['method']}.", ""]
    lines += ["| | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    for name, run in result["runs"].items():
        cells = [_cell(run["measures"][m], run["intervals"][m]) for m in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for pair in result["pairs"]:
        lines += ["", f"{pair['second']} minus {pair['first']}", ""]
        lines += ["| measure | difference | p | p, Holm |", "|---|---|---|---|"]
        for name, row in pair["measures"].items():
            lines.append(f"| {name} | {_change(row)} | {_p(row['p'])} | |")
        for name, row in pair["auc"].items():
            tested = f"{_change(row)} | {_p(row['p'])} | {_p(row['p_holm'])}"
            lines.append(f"| AUC {name} | {tested} |")
        test = pair["mcnemar"]
        lines += [
            "",
            f"McNemar's exact test: {test['first']} images right in {pair['first']} alone, "
            f"{test['second']} in {pair['second']} alone, p {_p(test['p'])}.",
        ]
    lines += [
        "",
        "p of a class's AUC: DeLong over lesions, corrected over the classes of all pairs by Holm; "
        "p of other measures: paired bootstrap over lesions, not corrected. McNemar's test takes "
        "images as independent.",
    ]
    return "\n".join(lines)


def aggregate_table(found: Mapping[str, Any]) -> str:
    """The mean over runs as Markdown, with both sources of variation."""
    lines = [
        "| measure | mean [95% interval] | between runs: s (n − 1) | (n) | test images | runs |",
        "|---|---|---|---|---|---|",
    ]
    for name in MEASURES:
        row = found[name]
        values = ", ".join(metrics.number(value) for value in row["values"])
        cells = [metrics.number(row[key]) for key in ("deviation", "population_deviation")]
        cells += [metrics.number(row["test_deviation"]), values]
        lines.append(f"| {name} | {_cell(row['mean'], row['interval'])} | {' | '.join(cells)} |")
    same = "the same" if found["same_images"] else "different"
    lines += ["", f"The runs were tested on {same} images."]
    return "\n".join(lines)


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    spread = f" [{', '.join(map(metrics.number, interval))}]" if interval else ""
    return metrics.number(value) + spread


def _change(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    bounds = row["interval"]
    spread = f" [{', '.join(f'{bound:+.3f}' for bound in bounds)}]" if bounds else ""
    return f"{row['difference']:+.3f}{spread}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< .001" if value < 0.001 else f"{value:.3f}"


def define_flags() -> None:
    """Defines the flags of the command line."""
    flags.DEFINE_enum("split", "test", splits.PARTS, "The part whose predictions to compare.")
    flags.DEFINE_integer("resamples", uncertainty.RESAMPLES, "Of the lesions.", lower_bound=100)
    flags.DEFINE_bool("aggregate", False, "The runs are seeds or folds of one method: their mean.")
    flags.DEFINE_string("out", "", "A JSON file to write the result to.")


def main(argv: list[str]) -> None:
    """Compares the runs named on the command line, or aggregates them."""
    given = flags.FLAGS
    found = read([Path(name).expanduser() for name in argv[1:]], given.split)
    if given.aggregate:
        result = aggregate(list(found.values()), given.resamples)
        print(aggregate_table(result))
    else:
        result = compare(aligned(found), given.resamples)
        print(table(result))
    if given.out:
        path = Path(given.out).expanduser()
        run_dir.write_json(path, result | {"runs_compared": list(found)})
        print(f"written: {path}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main, positional=POSITIONAL)
