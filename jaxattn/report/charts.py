"""Pictures of the report, embedded as data URIs. Charts follow the page into dark mode."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import sklearn.metrics
from matplotlib.figure import Figure
from PIL import Image

from jaxattn import overlays
from jaxattn.evaluation.predictions import Predictions

INK, GRID, FAINT, ACCENT, SECOND = "#1f2933", "#e4e7eb", "#9aa5b1", "#1b6ca8", "#c4572e"

#: Colours that change in dark mode.
_DARK = {INK: "#e4e7eb", GRID: "#343e4a", FAINT: "#7b8794", ACCENT: "#63b3ed", SECOND: "#f0946c"}

# Okabe and Ito's colours, safe for colour-blind readers; beyond them, the same dashed.
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)

_STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "none",
    "svg.hashsalt": "jaxattn",  # the same run gives the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a class may have any name
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An embedded picture.

    Attributes:
        src: Data URI.
        alt: What it shows, in words.
    """

    src: str
    alt: str


def loss_curve(
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    step: int | None,
    weighted: str = "",
) -> Picture:
    """Loss over steps, with the evaluated step marked; ``weighted`` says what training's holds."""
    of_training = f"training, with {weighted}" if weighted else "training"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curve(axes, train, "loss", of_training, FAINT)
        _curve(axes, validation, "loss", "validation, cross-entropy", ACCENT, marker="o")
        axes.set(title="Loss", xlabel="step", ylim=(0, None))
        _mark(axes, step)

    return _svg(draw, (4.9, 3.4), "Training and validation loss over training steps")


def accuracy_curve(
    train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], step: int | None
) -> Picture:
    """Accuracies over steps, with the evaluated step marked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curve(axes, train, "accuracy", "training accuracy", FAINT)
        _curve(axes, validation, "accuracy", "validation accuracy", SECOND, marker="o")
        _curve(axes, validation, "balanced_accuracy", "validation balanced", ACCENT, marker="o")
        axes.set(title="Accuracy", xlabel="step", ylim=(0, 1.02))
        _mark(axes, step)

    return _svg(draw, (4.9, 3.4), "Training and validation accuracy over training steps")


def roc_curves(predictions: Predictions, per_class: Mapping[str, Mapping[str, Any]]) -> Picture:
    """ROC curves of each class against all others; classes without an AUC have none."""

    def points(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        false, true, _ = sklearn.metrics.roc_curve(positive, scores)
        return false, true

    return _per_class(
        predictions, per_class, points, "auc", "AUC", ("1 − specificity", "sensitivity"), "ROC"
    )


def precision_recall_curves(
    predictions: Predictions, per_class: Mapping[str, Mapping[str, Any]]
) -> Picture:
    """Precision-recall curves of each class against all others."""

    def points(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = sklearn.metrics.precision_recall_curve(positive, scores)
        return recall, precision

    axes = ("recall (sensitivity)", "precision")
    return _per_class(
        predictions, per_class, points, "average_precision", "AP", axes, "Precision-recall"
    )


def _per_class(
    predictions: Predictions,
    per_class: Mapping[str, Mapping[str, Any]],
    points: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    measure: str,
    name_of_measure: str,
    labels: tuple[str, str],
    title: str,
) -> Picture:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if title == "ROC":
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        for c, (name, row) in enumerate(per_class.items()):
            if row.get("auc") is None:
                continue
            x, y = points(predictions.labels == c, predictions.probabilities[:, c])
            value = row.get(measure)
            known = "" if value is None else f"  {value:.3f}"
            label = f"{name}{known}  (n = {row['support']})"
            drawn = "steps-post" if title != "ROC" else "default"
            style = ("-", "--", ":")[c // len(_SERIES) % 3]
            axes.plot(x, y, style, color=_SERIES[c % len(_SERIES)], label=label, drawstyle=drawn)
        axes.set(xlabel=labels[0], ylabel=labels[1], aspect="equal", title=title)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        if axes.get_legend_handles_labels()[0]:
            heading = f"class, {name_of_measure}"
            figure.legend(title=heading, alignment="left", loc="outside lower left", ncols=2)

    height = 4.9 + 0.1 * len(per_class)
    return _svg(draw, (4.9, height), f"{title} curves, one class against all others")


def reliability_curve(
    reliability: Sequence[Mapping[str, Any]], scaled: Sequence[Mapping[str, Any]] = ()
) -> Picture:
    """Accuracy over confidence by bin, as it is and with the temperature; counts below."""

    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        series = [
            (reliability, ACCENT, "as it is", -0.5),
            (scaled, SECOND, "with temperature", 0.5),
        ]
        for rows, colour, label, side in series:
            if not rows:
                continue
            x, y, images = (
                [row[key] for row in rows] for key in ("confidence", "accuracy", "images")
            )
            axes.plot(x, y, color=colour, marker="o", markersize=3.5, label=label)
            below.bar(np.array(x) + 0.012 * side, images, width=0.012, color=colour)
        axes.set(ylabel="accuracy", title="Reliability", ylim=(-0.01, 1.01))
        axes.legend(loc="upper left")
        below.set(xlabel="confidence", ylabel="images", xlim=(-0.01, 1.01))

    return _svg(draw, (4.9, 5.6), "Reliability: accuracy over the predicted class's probability")


def colour_bar(colormap: str) -> Picture:
    """The colours of a map, from its least value to its largest."""
    colours = overlays.colour(
        np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(12, 0), colormap
    )
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")
    return _picture("png", buffer.getvalue(), "colours from the least value to the largest")


def photo(image: np.ndarray, alt: str) -> Picture:
    """An image as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return _picture("jpeg", buffer.getvalue(), alt)


def blocks(maps: np.ndarray, size: tuple[int, int], alt: str, colormap: str = "viridis") -> Picture:
    """The summed heads of a map at its own resolution, each position a block of the image.

    A flat map is grey.
    """
    colours = overlays.colour(overlays.rescale(overlays.aggregate(maps)), colormap)
    coarse = Image.fromarray(np.full_like(colours, 128) if overlays.is_flat(maps) else colours)
    buffer = io.BytesIO()
    coarse.resize(size[::-1], Image.Resampling.NEAREST).save(buffer, "PNG")
    return _picture("png", buffer.getvalue(), alt)


def border(mask: np.ndarray) -> Picture:
    """The border of a lesion mask as a transparent picture, to lie over the image."""
    line = np.zeros((*mask.shape, 4), np.uint8)
    width = max(1, max(mask.shape) // 200)
    for colour, reach in (((0, 0, 0, 255), 2 * width), ((255, 255, 255, 255), width)):
        drawn = overlays.outline(np.zeros((*mask.shape, 3), np.uint8), mask, (1, 1, 1), reach)
        line[drawn[..., 0] > 0] = colour
    buffer = io.BytesIO()
    Image.fromarray(line).save(buffer, "PNG")
    return _picture("png", buffer.getvalue(), "border of the lesion mask")


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


def _mark(axes: Any, step: int | None) -> None:
    if step is not None:
        axes.axvline(step, color=INK, linestyle=":", linewidth=1.2, label="evaluated")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _svg(draw: Callable[[Figure], None], size: tuple[float, float], alt: str) -> Picture:
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _picture("svg+xml", _adapt(buffer.getvalue()).encode(), alt)


def _adapt(svg: str) -> str:
    """Turns colours that change in dark mode into CSS variables."""
    light, dark = "", ""
    for i, (colour, other) in enumerate(_DARK.items()):
        svg = svg.replace(f": {colour}", f": var(--c{i})")
        light += f"--c{i}: {colour}; "
        dark += f"--c{i}: {other}; "
    style = f"<style>svg {{ {light}}} @media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }}"
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}{style}</style>{svg[start:]}"


def _picture(kind: str, content: bytes, alt: str) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}", alt)
