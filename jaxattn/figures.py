"""Figures of the papers: ``python -m jaxattn.figures RUN... --figure=NAME --out=figure.pdf``.

They are drawn from what runs have left on disk; no model is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

from jaxattn import cli, files, overlays
from jaxattn.compare import names
from jaxattn.data.crops import Crops, corners
from jaxattn.data.dataset import height_width
from jaxattn.errors import invalid
from jaxattn.evaluation import gallery
from jaxattn.registry import Registry
from jaxattn.report import loading
from jaxattn.report.loading import Run

#: The command line takes folders, not only flags.
POSITIONAL = True

#: Figures by name: they draw runs into a matplotlib figure.
FIGURES: Registry[Callable[[Any, Sequence[Run]], None]] = Registry("--figure")

#: Cases that a figure shows.
_CASES = 3


@FIGURES.register("crops")
def crop_weights(figure: Any, runs: Sequence[Run]) -> None:
    """Borders of crops, the brighter the larger their weight (Gessert et al. 2019, figure 4)."""
    from matplotlib.patches import Rectangle

    run = _only(runs)
    name, maps = _maps(run, "patch_attention_")
    crops, size = Crops(**run.config.crops), height_width(run.config.dataset.image_size)
    shown = min(_CASES, len(maps))
    grid = np.atleast_1d(figure.subplots(1, shown))
    for i, axes in enumerate(grid):
        picture = _picture(run, i)
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[], title=name if i == 0 else "")
        weights = weights_of_crops(maps[i], crops, size)
        brightness = overlays.rescale(weights[None].astype(np.float32))[0]
        scale = np.array(picture.shape[:2]) / size
        places = corners(crops.count, size, crops.shape)
        for at in np.argsort(weights):  # the heaviest on top
            top, left = np.array(places[at]) * scale
            height, width = np.array(crops.shape) * scale
            level = 0.15 + 0.85 * float(brightness[at])
            axes.add_patch(
                Rectangle(
                    (left, top), width, height, fill=False, linewidth=2.5, edgecolor=(level,) * 3
                )
            )


def weights_of_crops(
    cells: Float[np.ndarray, "K h w"], crops: Crops, size: tuple[int, int]
) -> Float[np.ndarray, " crops"]:
    """The weight of each crop, from the mean weights of the crops that show each cell.

    Args:
        cells: A map that `Crops.on_image` placed in the image.
        crops: ``ordered`` ones.
        size: Height and width of the image in pixels.
    """
    if crops.strategy != "ordered":
        raise invalid("crops.strategy", "'ordered' for --figure=crops", repr(crops.strategy))
    unit = jnp.eye(crops.count)[:, :, None, None]
    placed = np.asarray(crops.on_image(unit, *size)).reshape(crops.count, -1)
    return np.linalg.lstsq(placed.T, cells.sum(axis=0).ravel(), rcond=None)[0]


@FIGURES.register("sweep")
def dropout_sweep(figure: Any, runs: Sequence[Run]) -> None:
    """Balanced accuracy over patch dropout, a line per number of crops (Gessert's figure 5)."""
    points: dict[int, dict[float, list[float]]] = {}
    for run in runs:
        of_count = points.setdefault(run.config.crops.count, {})
        of_count.setdefault(run.config.crops.dropout, []).append(run.metrics["balanced_accuracy"])
    axes = figure.subplots()
    for count, values in sorted(points.items()):
        rates = sorted(values)
        means = [float(np.mean(values[rate])) for rate in rates]
        spread = [float(np.std(values[rate])) for rate in rates]
        axes.errorbar(rates, means, spread, marker="o", capsize=3, label=f"{count} crops")
    axes.set(xlabel="patch dropout", ylabel="balanced accuracy (MC-sensitivity)")
    axes.legend()


@FIGURES.register("maps")
def attention_beside_grad_cam(figure: Any, runs: Sequence[Run]) -> None:
    """The image, each attention map and Grad-CAM, in jet (Datta et al. 2021, figures 7 and 9)."""
    run = _only(runs)
    _maps(run, "")
    assert run.cases is not None
    found = {k.removeprefix("map/"): v for k, v in run.cases.items() if k.startswith("map/")}
    rows = min(_CASES, len(run.cases["image_id"]))
    grid = figure.subplots(rows, 1 + len(found), squeeze=False)
    for i, line in enumerate(grid):
        picture = _picture(run, i)
        shown = {"image": picture} | {
            name: overlays.overlay(picture, stack[i], 0.8 if name == "grad_cam" else 0.5)
            for name, stack in found.items()
        }
        for axes, (name, pixels) in zip(line, shown.items(), strict=True):
            axes.imshow(pixels)
            axes.set(xticks=[], yticks=[], title=name if i == 0 else "")


@FIGURES.register("learning")
def learning_curves(figure: Any, runs: Sequence[Run]) -> None:
    """Loss and accuracies of training (dashed) and validation of every run."""
    left, right = figure.subplots(1, 2)
    labels = names([run.folder for run in runs]) if len(runs) > 1 else [runs[0].folder.name]
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = f"C{number}"
        for axes, measure in ((left, "loss"), (right, "accuracy"), (right, "balanced_accuracy")):
            for kind, style in (("train", "--"), ("validation", "-")):
                rows = [row for row in run.log.get(kind, []) if row.get(measure) is not None]
                style = ":" if measure == "balanced_accuracy" else style
                named = label if (kind, measure) == ("validation", "loss") else None
                x, y = [row["step"] for row in rows], [row[measure] for row in rows]
                axes.plot(x, y, style, color=colour, label=named)
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylabel="accuracy; dotted: balanced")
    left.legend()


def draw(folders: Sequence[Path], name: str, out: Path) -> None:
    """Draws a figure of runs into a file: PNG, PDF or SVG by its name.

    Raises:
        InputError: Unknown figure or kind of file, or the runs lack what it shows.
    """
    from matplotlib.figure import Figure

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise invalid("--out", "a file that ends in .png, .pdf or .svg", out)
    drawing = FIGURES[name]
    runs = [loading.load(folder) for folder in folders]
    figure = Figure(figsize=(9, 6) if name == "maps" else (9, 4), layout="constrained")
    drawing(figure, runs)
    with files.replacing(out) as part:
        figure.savefig(part, format=out.suffix[1:], dpi=150)


def _only(runs: Sequence[Run]) -> Run:
    if len(runs) != 1:
        raise invalid("--figure", "one run for this figure", f"{len(runs)} runs")
    return runs[0]


def _maps(run: Run, prefix: str) -> tuple[str, np.ndarray]:
    """The last map of the cases whose name starts so."""
    cases: Mapping[str, np.ndarray] = run.cases or {}
    found = [key for key in sorted(cases) if key.startswith(f"map/{prefix}")]
    if not found:
        raise invalid(str(run.folder), f"an evaluation with a map {prefix}...", "none")
    return found[-1].removeprefix("map/"), cases[found[-1]]


def _picture(run: Run, i: int) -> np.ndarray:
    assert run.cases is not None
    own = f"picture/{i}"
    return gallery.decoded(run.cases[own]) if own in run.cases else run.cases["image"][i]


def define_flags() -> None:
    """Defines the flags of the command line."""
    flags.DEFINE_string("figure", None, f"One of {', '.join(FIGURES)}.", required=True)
    flags.DEFINE_string("out", "figure.png", "File to write: .png, .pdf or .svg.")
    cli.define_plugin_flag()


def main(argv: list[str]) -> None:
    """Draws the runs named on the command line."""
    if not argv[1:]:
        raise invalid("command line", "the folder of a run, or of several", "none")
    out = Path(flags.FLAGS.out).expanduser()
    draw([Path(name).expanduser() for name in argv[1:]], flags.FLAGS.figure, out)
    print(f"written: {out}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main, positional=POSITIONAL)
