"""Results that the papers report, to show beside a run's: ``reference_results.json``.

A result is found by data set, split and row. Rows are named by the arguments of the paper's file in
``configs/``: ``irv2_sa`` (datta2021), ``5x5,nevus`` (datta2021_isic), ``cnn_sa`` (koefler2023),
``densenet121,dual`` (gessert2019), ``attnmel_lesion`` (yan2019).

Numbers of Datta et al. are those that the authors' notebooks print
(github.com/skrantidatta/Attention-based-Skin-Cancer-Classification), which have more digits and
measures than the paper and agree with its tables 1 and 2 within .0021.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRUST: Mapping[str, str] = {
    "sound": "no flaw is known",
    "optimistic": "the model was selected on the test images",
    "leaky": "copies of test images were in training",
    "inconsistent": "the numbers contradict each other",
    "unknown": "quoted from elsewhere; the protocol is unknown",
}
"""What an entry's ``trust`` means."""

_GESSERT_NETWORKS = {
    "torch_densenet121": "densenet121",
    "torch_inception_v3": "inception_v3",
    "torch_se_resnext50_cadene": "se_resnext50",
}
_YAN_MODELS = {
    "vgg16_bn": "vgg16",
    "vgg16_bn_gap": "vgg16_gap",
    "melcnn": "mel",
    "attnmelcnn": "attnmel",
}
_YAN_TARGETS = {"lesion": "_lesion", "attributes": "_dermo", "background": "_bkg"}


def find(dataset: str, split: str, row: str) -> dict[str, Any] | None:
    """The result that a paper reports, None if it reports none.

    Args:
        dataset: ``ham10000``, ``isic2016``, ``isic2017``, ``derm7pt`` or ``isic2019``.
        split: ``datta 85/15``, ``datta 80/20``, ``datta 70/30``, ``koefler 67/33``, ``3 folds``
            (Gessert et al.), ``official``, ``sample of 491`` (Köfler's of ISIC 2019), or ``quoted``
            for numbers that a paper takes from other papers.
        row: See the module.

    Returns:
        Measures under the names of `jaxattn.metrics.classification`, as far as they were reported,
        ``target`` (see `jaxattn.metrics.detection`) and ``jaccard``; for results over folds,
        ``deviation``, laid out like the measures. Beside them ``paper``, ``table``, ``row``,
        ``dataset``, ``split``, ``classes`` (as in ``config.dataset.classes``), ``source``,
        ``protocol``, ``trust`` (see `TRUST`) and ``caveat``. Do not modify it.
    """
    return _results().get((dataset, split, row))


def for_run(config: Any, dataset: str) -> dict[str, Any] | None:
    """The result to show beside a run's, None if no paper reports one.

    A run that keeps lesions together (``split.strategy=lesion``) gets the result on the split of
    the same share; its ``protocol`` says that the split is another one.

    Args:
        config: The run's config, complete (see `jaxattn.config.read`).
        dataset: Name of the data set that it was evaluated on.
    """
    entry = find(dataset, _split(config), _row(config))
    if entry is None:
        return None
    classes = tuple(config.dataset.classes) or _file()["datasets"][dataset]
    return entry if set(classes) == set(entry["classes"]) else None


def differences(config: Any, entry: Mapping[str, Any]) -> list[str]:
    """What differs between a run and a published result, apart from the weights; [] if nothing.

    Args:
        config: The run's config, complete.
        entry: From `for_run`.
    """
    found = []
    if entry["trust"] != "sound":
        found.append(f"published: {TRUST[entry['trust']]}")
    if not _same_split(config, entry):
        found.append("the images are split otherwise")
    leaked = {"optimistic": "select_on_test", "leaky": "koefler"}.get(entry["trust"], "")
    if leaked and config.split.leak != leaked:
        found.append(f"this run does not do so (split.leak={leaked} would)")
    if entry.get("deviation"):
        found.append("published: the mean over three folds' models")
    if entry["paper"] == "gessert2019":
        found.append("published: the last checkpoint (jaxattn evaluate --checkpoint=latest)")
    if config.dtype != "float32":
        found.append(f"this run computes in {config.dtype} (--config.dtype=float32)")
    wanted = {"datta2021": "nearest", "koefler2023": "bilinear"}.get(entry["paper"], "")
    resize = config.dataset.get("resize", "antialias")
    if wanted and wanted != resize:
        found.append(f"images are resized by {resize} (--config.dataset.resize={wanted})")
    if config.evaluation.tta != 1 or config.evaluation.logit_adjustment:
        found.append("this run uses test-time augmentation or logit adjustment")
    if config.metadata.fields:
        found.append("this run sees metadata beside the image (--config.metadata.fields=())")
    return found


def comparable(config: Any, entry: Mapping[str, Any]) -> bool:
    """Whether numbers can stand beside each other: sound, and on the same images."""
    return entry["trust"] == "sound" and _same_split(config, entry)


def config_of(entry: Mapping[str, Any]) -> str:
    """The name of the config, with its arguments, that reproduces an entry; '' if there is none."""
    paper, row, split = entry["paper"], entry["row"], entry["split"]
    if split == "quoted" or entry["dataset"] == "isic2019" or row == "irv2_grad_cam":
        return ""
    if paper == "datta2021" and entry["dataset"] == "isic2017":
        return f"datta2021_isic:{row},leaky"
    if paper == "datta2021":
        return f"datta2021:{row},test={int(split.rpartition('/')[2]) / 100:g},leaky"
    if paper == "koefler2023":
        return f"koefler2023:{row},leaky"
    if paper == "gessert2019":
        return f"gessert2019:{row}" + (",spc" if entry["dataset"] == "derm7pt" else "")
    return f"yan2019:{row},{entry['dataset']}"


def _same_split(config: Any, entry: Mapping[str, Any]) -> bool:
    """Whether a run's images are split as the paper's: not where the paper's draw is unknown."""
    if entry["paper"] == "gessert2019" and config.split.file:
        return True  # their index file
    return not entry["protocol"].startswith("another")


def table(paper: str, number: str) -> list[dict[str, Any]]:
    """The entries of one table of a paper, each with its ``row``.

    Args:
        paper: ``datta2021``, ``koefler2023``, ``gessert2019`` or ``yan2019``.
        number: As printed, ``1`` or ``IV``; ``""`` for results in no table. Table 3 of Yan et al.
            is part of table 2, and table 2 of Datta et al. lacks the split that table 1 has.
    """
    return [
        _entry(each, row)
        for each in _file()["tables"]
        if (each["paper"], each["table"]) == (paper, number)
        for row in each["rows"]
    ]


def note(entry: Mapping[str, Any]) -> str:
    """One line on where an entry is from and how far it compares."""
    return "; ".join(filter(None, (entry["source"], entry["protocol"], entry["caveat"])))


@functools.cache
def _file() -> dict[str, Any]:
    path = Path(__file__).with_name("reference_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _results() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Entries by key; of a row that several tables repeat, the first."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in _file()["tables"]:
        for row in each["rows"]:
            found.setdefault((each["dataset"], each["split"], row), _entry(each, row))
    return found


def _entry(table: Mapping[str, Any], row: str) -> dict[str, Any]:
    shared = {key: value for key, value in table.items() if key != "rows"}
    classes = {"classes": _file()["datasets"][table["dataset"]]}
    return classes | shared | {"row": row} | table["rows"][row]


def _split(config: Any) -> str:
    split = config.split
    if split.leak == "koefler":
        return "koefler 67/33"
    if split.strategy == "folds":
        return f"{split.folds} folds"
    if split.strategy in ("lesion", "datta"):
        paper = "koefler" if config.model.name.startswith("koefler") else "datta"
        test = round(100 * split.test)
        return f"{paper} {100 - test}/{test}"
    return split.strategy


def _row(config: Any) -> str:
    name = config.model.name
    if name == "gessert2019":
        return _gessert_row(config)
    if name.startswith("isic_irv2_sa_"):
        task = "rest" if "rest=nevus+melanoma" in config.dataset.classes else "nevus"
        return f"{name.removeprefix('isic_irv2_sa_')},{task}"
    if name in _YAN_MODELS:
        maps = config.loss.maps
        return _YAN_MODELS[name] + (_YAN_TARGETS.get(maps.target, "") if maps.weights else "")
    return name.removeprefix("koefler_")


def _gessert_row(config: Any) -> str:
    """Network, strategy and whatever differs from nine crops and loss weighting with k = 1."""
    model, crops, loss = config.model, config.crops, config.loss
    strategies = {("initial",): "initial", ("end",): "end", ("initial", "end"): "dual"}
    strategy = crops.strategy
    if strategy == "ordered":
        attention = strategies.get(tuple(model.get("attention", ())), "")
        strategy = "gru" if model.get("head") == "gru" else attention
    parts = [_GESSERT_NETWORKS.get(model.get("backbone", "torch_densenet121"), ""), strategy]
    if crops.count != 9:
        parts.append(f"crops{crops.count}")
    samplers = {"oversample": "oversampling", "balanced_batches": "balanced"}
    if config.sampler.name in samplers:
        parts.append(samplers[config.sampler.name])
    elif not loss.class_weight_exponent:
        parts.append("none")
    elif loss.diagnosis_guided:
        parts.append("diagnosis" if len(loss.diagnosis_guided) > 1 else "diagnosis_nevi")
    if loss.class_weight_exponent not in (0, 1):
        parts.append(f"k{loss.class_weight_exponent:g}")
    return ",".join(parts)
