"""The model card of a run (Mitchell et al. 2019, "Model cards for model reporting").

Everything in it is read from the run's folder: counts from its split, metrics and their intervals
from ``evaluation/test.json``, and nothing is said that is not known.
"""

import collections
import csv
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from jaxattn import run_dir
from jaxattn.data import leaks
from jaxattn.export.formats import FORMATS, preprocessing
from jaxattn.metrics import AGGREGATES, number
from jaxattn.run import Run

JSON, MARKDOWN = "model_card.json", "README.md"
EVALUATION = "evaluation/test.json"

INTENDED = (
    "For research on skin-lesion classifiers and for teaching: comparing methods, studying what a "
    "network attends to, starting further training. Images like those it was trained on, one "
    "lesion each."
)
NOT_INTENDED = (
    "Not for diagnosis, triage or any other decision about a person: it is no medical device and "
    "was not tested as one."
)


def card(run: Run) -> dict[str, Any]:
    """The card as data, for JSON.

    Returns:
        ``name``, ``model``, ``step``, ``parameters``, ``intended_use``, ``not_intended``,
        ``classes`` (training images of each), ``data``, ``split``, ``leak``, ``evaluation`` (None
        if the run was not evaluated at this step), ``preprocessing``, ``tta``,
        ``logit_adjustment``, ``limits`` and ``versions``.
    """
    config, evaluation = run.config, _evaluation(run)
    return {
        "name": run.folder.resolve().name,
        "model": run.metadata["model"],
        "step": run.metadata["step"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "intended_use": INTENDED,
        "not_intended": NOT_INTENDED,
        "classes": dict(run.metadata["training_images"]),
        "data": data(run_dir.read_classes(run.folder)["dataset"]),
        "split": split(run),
        "leak": leak_statement(config.split.leak, evaluation),
        "evaluation": evaluation,
        "preprocessing": preprocessing(run),
        "tta": config.evaluation.tta,
        "logit_adjustment": config.evaluation.logit_adjustment,
        "limits": limits(run, evaluation),
        "versions": run_dir.versions(),
    }


@FORMATS.register("card")
def write(run: Run, folder: Path) -> None:
    """Writes the card as JSON and as Markdown."""
    facts = card(run)
    run_dir.write_json(folder / JSON, facts)
    files = sorted(path.name for path in folder.iterdir())
    (folder / MARKDOWN).write_text(markdown(facts, files), encoding="utf-8")


def markdown(facts: Mapping[str, Any], files: list[str]) -> str:
    """The card as Markdown.

    Args:
        facts: What `card` returns.
        files: Names of the files beside it.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxattn.export", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "cell": _cell, "bounds": _bounds}
    return environment.get_template("model_card.md.j2").render(
        facts, files=files, aggregates=AGGREGATES
    )


def data(name: str) -> dict[str, Any]:
    """Name, title, licence, source and citation of a data set; what is not known is None."""
    file = resources.files("jaxattn.export").joinpath("datasets.json")
    sheets = json.loads(file.read_text(encoding="utf-8"))
    unknown = dict.fromkeys(("title", "licence", "source", "citation", "population"))
    return {"name": name, **unknown, **sheets.get(name, {})}


def split(run: Run) -> dict[str, Any]:
    """How the images were split: the strategy, and images and lesions of each part."""
    parts: dict[str, Any] = {}
    path = run.folder / run_dir.SPLIT
    if path.is_file():
        lesions = collections.defaultdict[str, list[str]](list)
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                lesions[row["split"]].append(row.get("lesion_id", ""))
        parts = {
            part: {
                "images": len(lesions[part]),
                "lesions": None if "" in lesions[part] else len(set(lesions[part])),
            }
            for part in ("train", "validation", "test")
            if lesions[part]
        }
    chosen = run.config.split
    return {"strategy": chosen.strategy, "seed": chosen.seed, "fold": chosen.fold, "parts": parts}


def leak_statement(leak: str, evaluation: Mapping[str, Any] | None) -> str:
    """One or two sentences on whether training has seen test images."""
    measured = (evaluation or {}).get("measured_leak")
    if leak:
        if measured:
            leaking = leaks.warning(leak, measured)
        else:
            leaking = f"split.leak={leak}: {leaks.LEAKS[leak]}"
        return f"The scores do not estimate performance on new patients. {leaking}."
    if not measured:
        return "No protocol that leaks test data was chosen; how much leaks was not measured."
    if not any(measured.values()):
        return "By their ids, no test image and no lesion of one is in training."
    return (
        f"Training has the lesion of {measured['lesion']:.1%} of the test images, and "
        f"{measured['image']:.1%} of the test images themselves, by their ids."
    )


def limits(run: Run, evaluation: Mapping[str, Any] | None) -> list[str]:
    """What to keep in mind when the model is used, as sentences."""
    sheet, names = data(run_dir.read_classes(run.folder)["dataset"]), run.class_names
    said = [
        f"It knows {len(names)} classes ({', '.join(names)}) and gives every image one of them, "
        "whatever it shows.",
        "Images of other devices, clinics, skin types or body sites than those of the training "
        "data may be classified worse, and just as confidently.",
    ]
    if sheet["population"]:
        said.append(sheet["population"])
    counts = run.metadata["training_images"]
    rarest = min(counts, key=counts.get)
    said.append(f"The rarest class in training, {rarest}, has {counts[rarest]:,} images.")
    if evaluation is None:
        said.append("It was not evaluated: nothing is known about how often it is right.")
    if evaluation and evaluation["metrics"].get("calibration", {}).get("ece") is not None:
        error = evaluation["metrics"]["calibration"]["ece"]
        said.append(
            f"Its confidence is off by {error:.1%} on average (expected calibration error)."
        )
    else:
        said.append(
            "Its probabilities are softmax outputs; whether they are calibrated is unknown."
        )
    said.append("Maps show where features are weighed, which is no explanation of a diagnosis.")
    return said


def _evaluation(run: Run) -> dict[str, Any] | None:
    """The evaluation of the test part, if it is of this checkpoint."""
    path = run.folder / EVALUATION
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["step"] != run.metadata["step"]:
        return None
    wanted = (
        *("dataset", "split", "images", "lesions", "measured_leak", "device", "versions"),
        *("metrics", "intervals", "date", "commit"),
    )
    return {"intervals": {}} | {name: found[name] for name in wanted if name in found}


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _bounds(interval: Any) -> str:
    """An interval in brackets; '' without one."""
    return f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
