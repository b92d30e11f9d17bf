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
from jaxattn.predictions import Predictions

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
    train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], step: int | None
) -> Picture:
    """Loss over steps, with the evaluated step marked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curve(axes, train, "loss", "training", FAINT)
        _curve(axes, validation, "loss", "validation", ACCENT, marker="o")
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

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        for c, (name, row) in enumerate(per_class.items()):
            if row["auc"] is None:
                continue
            false, true, _ = sklearn.metrics.roc_curve(
                predictions.labels == c, predictions.probabilities[:, c]
            )
            style = ("-", "--", ":")[c // len(_SERIES) % 3]
            label = f"{name}  {row['auc']:.3f}  (n = {row['support']})"
            axes.plot(false, true, style, color=_SERIES[c % len(_SERIES)], label=label)
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(title="class, AUC", alignment="left", loc="outside lower left", ncols=2)

    height = 4.9 + 0.1 * len(per_class)
    return _svg(draw, (4.9, height), "ROC curves, one class against all others")


def photo(image: np.ndarray, alt: str) -> Picture:
    """An image as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return _picture("jpeg", buffer.getvalue(), alt)


def blocks(maps: np.ndarray, size: tuple[int, int], alt: str) -> Picture:
    """The summed heads of a map at its own resolution, each position a block of the image."""
    coarse = Image.fromarray(overlays.colour(overlays.rescale(overlays.aggregate(maps))))
    buffer = io.BytesIO()
    coarse.resize(size[::-1], Image.Resampling.NEAREST).save(buffer, "PNG")
    return _picture("png", buffer.getvalue(), alt)


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
