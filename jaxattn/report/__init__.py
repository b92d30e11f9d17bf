"""Writes what a run found into one HTML file: ``python -m jaxattn.report --workdir=RUN``.

The report reads the run folder and nothing else, embeds its pictures and needs neither a network
nor scripts. A section is a function from a `Run` to HTML, listed in `SECTIONS`; to add one, write
the function and list it.
"""

import base64
import csv
import dataclasses
import html
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn.metrics
from absl import flags
from matplotlib.figure import Figure
from PIL import Image

from jaxattn import overlays
from jaxattn.cli import run_main
from jaxattn.config import flatten
from jaxattn.data import leaks
from jaxattn.errors import InputError
from jaxattn.metrics import MEASURES, number, paired_rows
from jaxattn.reference_results import DATTA2021

EVALUATE = "python -m jaxattn.evaluate --workdir="
TRAIN = "python -m jaxattn.train --workdir="

INK, ACCENT, SECOND, FAINT = "#1f2933", "#1b6ca8", "#c4572e", "#9aa5b1"

# Okabe and Ito's colours, which the colour-blind can tell apart; then the same, dashed.
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_CHART_STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "jaxattn",  # the same run gives the same bytes
    "text.parse_math": False,  # a class may be called anything
    "xtick.color": INK,
    "ytick.color": INK,
}

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1f2933;
  background: #fff; max-width: 1080px; margin: 0 auto; padding: 32px 28px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 5px;
  border-bottom: 1px solid #cbd2d9; } h3 { font-size: 15px; margin: 22px 0 8px; }
p { margin: 8px 0; max-width: 78ch; } .note, figcaption { color: #52606d; font-size: 13px; }
code { font: 12.5px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.lead { color: #52606d; margin: 2px 0 22px; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin: 0 0 18px; }
.tile { border: 1px solid #cbd2d9; border-radius: 6px; padding: 12px 16px; }
.tile b { display: block; font-size: 30px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: #52606d; font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #e4e7eb; }
th { font-weight: 600; } thead th { border-bottom: 1px solid #9aa5b1; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.paper, th.paper { color: #7b8794; padding-left: 0; font-weight: 400; }
tr.average td { font-weight: 600; white-space: nowrap; } tr.average td.paper { font-weight: 400; }
tr.first td { border-top: 1px solid #9aa5b1; }
.facts { columns: 2; column-gap: 40px; }
.facts table { width: 100%; font-size: 13px; border-collapse: separate; border-spacing: 0; }
.facts td { text-align: left; overflow-wrap: anywhere; vertical-align: top; }
.facts td:first-child { color: #52606d; width: 44%; } .facts tr { break-inside: avoid; }
figure { margin: 8px 0 16px; } figure > img { max-width: 100%; display: block; }
.missing { border-left: 3px solid #c4572e; background: #fdf4f0; padding: 10px 14px; }
.cases { display: grid; grid-template-columns: 1fr 1fr; gap: 18px 24px; }
.cases.wide { grid-template-columns: 1fr; }
.case { break-inside: avoid; } .case header { font-size: 13.5px; margin-bottom: 5px; }
.case header code { color: #52606d; float: right; }
.case .views { display: flex; gap: 6px; } .case .views figure { flex: 1; margin: 0; min-width: 0;
  max-width: 200px; }
.case .views img { width: 100%; display: block; border-radius: 3px; }
.case figcaption { font-size: 12px; }
.wrong { color: #b03a12; font-weight: 600; } .right { color: #18703f; font-weight: 600; }
@page { margin: 14mm; }
@media print { body { max-width: none; padding: 0; font-size: 12px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } figure, .tiles, table, p { break-inside: avoid; }
  .facts table { break-inside: auto; } .case header { font-size: 10.5px; } }
"""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of ``test_predictions.csv``: lesion, true class index, probabilities ``(N, C)``."""

    lesion_ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds; None or empty where an optional file is missing."""

    folder: Path
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    log: Mapping[str, list[dict[str, Any]]]
    predictions: Predictions | None
    cases: Mapping[str, np.ndarray] | None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What `jaxattn.metrics.classification` returned for the test split."""
        return self.evaluation["metrics"]

    @property
    def class_names(self) -> list[str]:
        """The classes in index order."""
        return list(self.metrics["per_class"])

    @property
    def data_name(self) -> str:
        """The data set that was evaluated on; '' where the evaluation names none."""
        return str(self.evaluation.get("dataset", ""))

    def setting(self, field: str) -> str:
        """A field of the config that is either a name or a group with a ``name``; else ''."""
        value = self.config.get(field, "")
        return str(value.get("name", "") if isinstance(value, Mapping) else value)


def write(run_dir: str | Path) -> Path:
    """Writes ``report.html`` into a run folder.

    Args:
      run_dir: a folder with ``config.json`` and ``evaluation/test.json``; ``log.jsonl``,
        ``evaluation/test_predictions.csv`` and ``evaluation/test_cases.npz`` are optional, and a
        section whose file is missing says so and how to make it.

    Returns:
      The path of the report, which holds its pictures and refers to nothing outside itself.

    Raises:
      InputError: a required file is missing, or a file is not what it should be.
    """
    run = load(Path(run_dir).expanduser())
    split = run.evaluation.get("split", "test")
    title = f"{run.setting('model') or 'Run'} on {run.data_name or 'unknown data'}, {split} split"
    body = "\n".join(
        f"<section><h2>{_text(name)}</h2>\n{section(run)}</section>" for name, section in SECTIONS
    )
    path = run.folder / "report.html"
    path.write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n"
        f'<p class="lead">Run folder <code>{_text(run.folder.name)}</code></p>\n'
        f"{body}\n</body></html>\n",
        encoding="utf-8",
    )
    return path


def load(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
      InputError: a required file is missing, or a file is not what it should be.
    """
    config = _read_json(folder / "config.json", f"{TRAIN}{folder}")
    evaluation_path = folder / "evaluation" / "test.json"
    evaluation = _read_json(evaluation_path, f"{EVALUATE}{folder}")
    if not evaluation.get("metrics", {}).get("per_class"):
        raise InputError(f"{evaluation_path} has no metrics.per_class; wanted an evaluation.")
    predictions_path = folder / "evaluation" / "test_predictions.csv"
    predictions = _read_predictions(predictions_path, list(evaluation["metrics"]["per_class"]))
    n = evaluation["metrics"]["n"]
    if predictions and len(predictions.labels) != n:
        raise InputError(
            f"{predictions_path} has {len(predictions.labels)} rows and {evaluation_path} is about "
            f"{n} images; wanted files of one evaluation."
        )
    return Run(
        folder=folder,
        config=config,
        evaluation=evaluation,
        log=_read_log(folder / "log.jsonl"),
        predictions=predictions,
        cases=_read_cases(folder / "evaluation" / "test_cases.npz"),
    )


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; {command} writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; wanted an object.")
    return content


def _read_log(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows per kind in step order; of a step logged twice, by a resumed run, the later row."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line_number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.setdefault(row["kind"], {})[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if line_number == len(lines):
                break  # a run that was killed leaves half a line
            raise InputError(
                f"{path}, line {line_number}, is {line[:60]!r}; "
                "wanted a JSON object with kind and step."
            ) from error
    return {kind: [steps[step] for step in sorted(steps)] for kind, steps in rows.items()}


def _read_predictions(path: Path, names: Sequence[str]) -> Predictions | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    wanted = ["image_id", "lesion_id", "label", *(f"p_{name}" for name in names)]
    absent = [column for column in wanted if column not in (reader.fieldnames or ())]
    if absent:
        raise InputError(f"{path} lacks the columns {', '.join(absent)}.")
    try:
        return Predictions(
            lesion_ids=[row["lesion_id"] for row in rows],
            labels=np.array([_class_index(row["label"], names) for row in rows], np.int64),
            probabilities=np.array(
                [[float(row[f"p_{name}"]) for name in names] for row in rows], np.float64
            ).reshape(-1, len(names)),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} has a row that cannot be read: {error}.") from error


def _read_cases(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path) as archive:
            cases = dict(archive)
    except (ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an NPZ file ({error}).") from error
    absent = {"image_id", "image", "label", "prediction", "probability"} - set(cases)
    if absent:
        raise InputError(f"{path} lacks the arrays {', '.join(sorted(absent))}.")
    return cases


def _class_index(value: Any, names: Sequence[str]) -> int:
    """The index of a class given by name or by index."""
    known = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    if str(value) not in known:
        raise InputError(f"unknown class {str(value)!r}; wanted one of {', '.join(names)}")
    return known[str(value)]


# Sections


def headline(run: Run) -> str:
    """The three numbers to remember, and of what they are."""
    metrics, evaluation = run.metrics, run.evaluation
    tiles = [
        ("balanced accuracy", metrics["balanced_accuracy"]),
        ("accuracy", metrics["accuracy"]),
        ("macro AUC, one-vs-rest", metrics["macro"]["auc"]),
    ]
    shown = "".join(
        f'<div class="tile"><b>{number(value)}</b><span>{_text(label)}</span></div>'
        for label, value in tiles
    )
    lesions = set(run.predictions.lesion_ids) if run.predictions else {""}
    facts = {
        "model": run.setting("model") or "unknown",
        "data": run.data_name or "unknown",
        "split": evaluation.get("split", "test"),
        "images": metrics["n"],
        "lesions": "unknown" if "" in lesions else len(lesions),
        "checkpoint": f"{evaluation.get('checkpoint', '?')}, step {evaluation.get('step', '?')}",
    }
    if evaluation.get("prior_exponent"):
        exponent = evaluation["prior_exponent"]
        facts["predicted class"] = f"of the largest probability / (share in training)^{exponent:g}"
    absent = metrics.get("absent_classes") or []
    warning = (
        f'<p class="missing">No example of {_text(", ".join(absent))} in this split: averages are '
        "over the other classes.</p>"
        if absent
        else ""
    )
    if evaluation.get("leak"):
        sentence = leaks.warning(evaluation["leak"], evaluation["measured_leak"])
        warning += f'<p class="missing">These are no scores of new patients. {_text(sentence)}.</p>'
    return f'<div class="tiles">{shown}</div>{warning}{_facts(facts)}'


def settings(run: Run) -> str:
    """The configuration, flattened, and the software and device of the evaluation."""
    versions = {"device": run.evaluation.get("device", "unknown")}
    versions |= run.evaluation.get("versions", {})
    return (
        f"<h3>Configuration</h3>{_facts(flatten(run.config))}"
        f"<h3>Evaluated with</h3>{_facts(versions)}"
    )


def learning_curves(run: Run) -> str:
    """Loss and accuracies over steps, with the evaluated checkpoint marked."""
    if not run.log:
        return _missing("log.jsonl", f"{TRAIN}{run.folder}")
    train, validation = run.log.get("train", []), run.log.get("validation", [])
    step = run.evaluation.get("step")

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _curve(left, train, "loss", "training", FAINT)
        _curve(left, validation, "loss", "validation", ACCENT, marker="o")
        left.set(title="Loss", xlabel="step", ylim=(0, None))
        _curve(right, train, "accuracy", "training accuracy", FAINT)
        _curve(right, validation, "accuracy", "validation accuracy", SECOND, marker="o")
        _curve(right, validation, "balanced_accuracy", "validation balanced", ACCENT, marker="o")
        right.set(title="Accuracy", xlabel="step", ylim=(0, 1.02))
        for axes in (left, right):
            if step is not None:
                axes.axvline(step, color=INK, linestyle=":", linewidth=1.2, label="evaluated")
            if axes.get_legend_handles_labels()[0]:
                axes.legend()

    alt = "Loss and accuracy of training and validation over training steps"
    return _figure(
        _chart(draw, (10.2, 3.5), alt),
        f"Dotted line: the evaluated checkpoint ({run.evaluation.get('checkpoint', '?')}, "
        f"step {step if step is not None else '?'}). {_best(validation)}",
    )


def per_class(run: Run) -> str:
    """Precision, recall, F1 and AUC per class, beside published numbers where there are some."""
    published = DATTA2021.get(run.setting("model"))
    if published and set(published["per_class"]) != set(run.class_names):
        published = None
    second = '<th class="paper">paper</th>' if published else ""
    headings = "".join(
        f"<th>{'AUC' if m == 'auc' else 'F1' if m == 'f1' else m}</th>{second}" for m in MEASURES
    )
    support = '<th class="paper">paper</th>' if published else ""
    rows = []
    for name, ours, theirs in paired_rows(run.metrics, published):
        average = name in ("macro", "weighted")
        kind = ("average first" if name == "macro" else "average") if average else ""
        cells = ""
        for measure in MEASURES:
            cells += f"<td>{number(ours[measure])}</td>"
            cells += f'<td class="paper">{number(theirs.get(measure))}</td>' if published else ""
        cells += f"<td>{ours['support']}</td>"
        if published:
            cells += f'<td class="paper">{theirs.get("support", published["n"])}</td>'
        label = f"{name} average" if average else name
        rows.append(f'<tr class="{kind}"><td>{_text(label)}</td>{cells}</tr>')
    note = (
        f"<b>paper</b>: {_text(published['source'])}; {_text(published['protocol'])}, so the "
        "columns do not compare like with like."
        if published
        else "No published numbers are known for this model and these classes."
    )
    return (
        f"<table><thead><tr><th>class</th>{headings}<th>support</th>{support}</tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table><p class="note">Each class against all others. '
        f"Micro AUC {number(run.metrics['micro_auc'])}. {note}</p>{_positive(run)}"
    )


def confusion(run: Run) -> str:
    """Counts of truth against prediction, coloured by the fraction of the true class."""
    names = run.metrics["confusion"]["classes"]
    counts = np.array(run.metrics["confusion"]["counts"])
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(False)
        picture = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if fractions[row, column] > 0.55 else INK
            text = f"{count}\n{fractions[row, column]:.0%}" if count else "0"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8.5)
        axes.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 8:
            axes.tick_params(axis="x", rotation=30)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="prediction", ylabel="truth")
        bar = figure.colorbar(picture, shrink=0.8, label="fraction of the true class")
        bar.outline.set_visible(False)

    size = 1.8 + 0.62 * len(names)
    chart = _chart(draw, (size + 1.0, size), "Confusion matrix: rows truth, columns prediction")
    return _figure(
        chart, "Images per true class (row) and predicted class (column); percent of row."
    )


def roc_curves(run: Run) -> str:
    """ROC curves of each class against all others."""
    if run.predictions is None:
        return _missing("evaluation/test_predictions.csv", f"{EVALUATE}{run.folder}")
    predictions = run.predictions

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        for c, (name, row) in enumerate(run.metrics["per_class"].items()):
            if row["auc"] is None:
                continue
            false, true, _ = sklearn.metrics.roc_curve(
                predictions.labels == c, predictions.probabilities[:, c]
            )
            style = ("-", "--", ":")[c // len(_SERIES) % 3]
            colour = _SERIES[c % len(_SERIES)]
            label = f"{name}  {row['auc']:.3f}  (n = {row['support']})"
            axes.plot(false, true, style, color=colour, label=label)
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(
            title="class, AUC", alignment="left", loc="center left", bbox_to_anchor=(1, 0.5)
        )

    left_out = [n for n, row in run.metrics["per_class"].items() if row["auc"] is None]
    note = f" No curve for {', '.join(left_out)}: not both kinds of example." if left_out else ""
    return _figure(
        _chart(draw, (6.6, 4.3), "ROC curves, one class against all others"),
        f"One class against all others.{note}",
    )


def attention(run: Run) -> str:
    """Where the model looked, for sure hits and sure misses."""
    if run.cases is None:
        return _missing("evaluation/test_cases.npz", f"{EVALUATE}{run.folder}")
    cases = run.cases
    names = run.class_names
    drawn = run.config.get("evaluation", {}).get("overlay", {"alpha": 0.5, "bilinear": False})
    maps = {key.removeprefix("map/"): cases[key] for key in sorted(cases) if key.startswith("map/")}
    truth = [_class_index(value, names) for value in cases["label"]]
    predicted = [_class_index(value, names) for value in cases["prediction"]]
    groups: dict[bool, list[str]] = {True: [], False: []}
    for i, (label, prediction) in enumerate(zip(truth, predicted, strict=True)):
        card = _case(cases, maps, i, names[label], names[prediction], drawn)
        groups[label == prediction].append(card)
    explained = (
        "Overlay: the sum of the heads of an attention map, upsampled "
        f"({'bilinear' if drawn['bilinear'] else 'bicubic'}), rescaled to the range of its image "
        f"and blended at {drawn['alpha']:g}; dark blue is least, dark red most. Colours "
        "compare positions within an image, not strengths between images: <b>peak</b> is the "
        "largest value over the mean, 1 for no preference. The right-hand picture is the map at "
        "its own resolution. "
        if maps
        else "This model has no attention map. "
    )
    if "mask" in cases:
        explained += "White line: the border of the lesion mask. "
    wide = " wide" if len(maps) > 1 else ""
    shown = "".join(
        f"<h3>{title}</h3>"
        + (
            f'<div class="cases{wide}">{"".join(groups[hit])}</div>'
            if groups[hit]
            else "<p>None.</p>"
        )
        for hit, title in (
            (True, "Correct, surest of each class"),
            (False, "Wrong, surest of each class"),
        )
    )
    note = f'<p class="note">{explained}Images are as the model saw them.</p>'
    return f"{_jaccard(run)}{note}{shown}"


SECTIONS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("Result", headline),
    ("Per class", per_class),
    ("Confusion matrix", confusion),
    ("ROC curves", roc_curves),
    ("Learning curves", learning_curves),
    ("Attention", attention),
    ("What was run", settings),
)
"""Title and function of each section, in the order of the page."""


# Pieces of sections


def _positive(run: Run) -> str:
    """How the positive class is told from all others; '' where the config names none."""
    found = run.evaluation.get("positive")
    if not found:
        return ""
    rows = []
    for key, label in (("at_threshold", "given"), ("at_sensitivity", "for the sensitivity")):
        point = found[key] or {}
        cells = "".join(
            f"<td>{number(point.get(field))}</td>"
            for field in ("threshold", "recall", "precision", "specificity")
        )
        rows.append(f"<tr><td>{label}</td>{cells}</tr>")
    return (
        f"<h3>{_text(found['class'])} against all others</h3>"
        f"<p>AUC {number(found['auc'])}, "
        f"average precision {number(found['average_precision'])}.</p>"
        "<table><thead><tr><th>threshold</th><th></th><th>recall</th><th>precision</th>"
        f"<th>specificity</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _jaccard(run: Run) -> str:
    """The mean Jaccard index of each map with the lesion masks; '' without masks."""
    found = run.evaluation.get("jaccard")
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{number(value)}</td></tr>"
        for name, value in found["mean"].items()
    )
    return (
        "<table><thead><tr><th>map</th><th>Jaccard index</th></tr></thead>"
        f'<tbody>{rows}</tbody></table><p class="note">Mean over the {found["images"]} images with '
        "a lesion mask: each map upsampled bilinearly, rescaled to [0, 1] and cut at one half.</p>"
    )


def _case(
    cases: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    i: int,
    label: str,
    prediction: str,
    blend: Mapping[str, Any],
) -> str:
    image = cases["image"][i]
    has_mask = "mask" in cases and cases["mask"][i].any()

    def outlined(picture: np.ndarray) -> np.ndarray:
        return overlays.outline(picture, cases["mask"][i]) if has_mask else picture

    views = [(_photo(outlined(image), "the image"), "image")]
    for name, stack in maps.items():
        over = outlined(overlays.overlay(image, stack[i], **blend))
        blended = _photo(over, f"attention {name} over the image")
        coarse = _blocks(stack[i], image.shape[:2], f"attention map {name}")
        height, width = stack.shape[-2:]
        detail = f"{height}×{width}, peak {overlays.peak(stack[i]):.1f}"
        views += [(blended, name), (coarse, detail)]
    shown = "".join(
        f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"
        for picture, caption in views
    )
    kind = "right" if label == prediction else "wrong"
    return (
        f'<article class="case"><header><code>{_text(cases["image_id"][i])}</code>'
        f'truth {_text(label)}, predicted <span class="{kind}">{_text(prediction)}</span>, '
        f"p = {float(cases['probability'][i]):.3f}</header>"
        f'<div class="views">{shown}</div></article>'
    )


def _curve(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    field: str,
    label: str,
    colour: str,
    marker: str = "",
) -> None:
    rows = [row for row in rows if row.get(field) is not None]
    if rows:
        steps, values = ([row[key] for row in rows] for key in ("step", field))
        axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=3)


def _best(validation: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for row in validation if row.get("balanced_accuracy") is not None]
    if not rows:
        return "No validation was logged."
    best = max(rows, key=lambda row: row["balanced_accuracy"])
    return (
        f"Best validation balanced accuracy {number(best['balanced_accuracy'])} "
        f"at step {best['step']}."
    )


def _chart(draw: Callable[[Figure], None], size: tuple[float, float], alt: str) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_CHART_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _img("svg+xml", buffer.getvalue(), alt)


def _photo(image: np.ndarray, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return _img("jpeg", buffer.getvalue(), alt)


def _blocks(maps: np.ndarray, size: tuple[int, int], alt: str) -> str:
    """The summed heads as they are, each position a block of the image's field."""
    coarse = Image.fromarray(overlays.colour(overlays.rescale(overlays.aggregate(maps))))
    buffer = io.BytesIO()
    coarse.resize(size[::-1], Image.Resampling.NEAREST).save(buffer, "PNG")
    return _img("png", buffer.getvalue(), alt)


def _img(kind: str, content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{data}">'


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts.items()
    )
    return f'<div class="facts"><table><tbody>{rows}</tbody></table></div>'


def _missing(file: str, command: str) -> str:
    return (
        f'<p class="missing">Not shown: the run folder has no <code>{_text(file)}</code>. '
        f"<code>{_text(command)}</code> writes it.</p>"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    print(f"report: {write(Path(flags.FLAGS.workdir))}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    run_main(main)
