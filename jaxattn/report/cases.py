"""The gallery: what a run made of single images, and where it looked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxattn import overlays, reference_results
from jaxattn.evaluation import gallery, map_agreement
from jaxattn.evaluation.predictions import class_index
from jaxattn.metrics import number
from jaxattn.report import charts
from jaxattn.report.loading import EVALUATE, Run

_MEASURES = {
    "jaccard": "Jaccard index",
    "pointing_game": "pointing game",
    "share_inside": "share inside",
}


def attention(run: Run, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where the model looked, for confident hits and misses, and how far that is the lesion."""
    found = {"agreement": agreement(run, reference)}
    if run.cases is None:
        command = f"{EVALUATE}{run.folder}"
        return found | {"missing": {"file": "evaluation/test_cases.npz", "command": command}}
    cases = run.cases
    maps = {key.removeprefix("map/"): cases[key] for key in sorted(cases) if key.startswith("map/")}
    blend = run.config.evaluation.overlay.to_dict()
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for i in range(len(cases["image_id"])):
        case = _case(run, i, maps, blend)
        groups[case["hit"]].append(case)
    return found | {
        "maps": list(maps),
        "masks": any(case["border"] for group in groups.values() for case in group),
        "blend": blend,
        "colours": charts.colour_bar(blend["colormap"]),
        "groups": [
            ("Correct, most confident of each class", groups[True]),
            ("Wrong, most confident of each class", groups[False]),
        ],
    }


def agreement(run: Run, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """Agreement of maps and lesion masks, beside a paper's; {} where nothing was measured."""
    theirs = ((reference or {}).get("jaccard") or {}).get("mean", {})
    found = run.evaluation.get("map_agreement") or {}
    if not found:  # of older versions, the Jaccard index alone
        old = run.evaluation.get("jaccard") or {}
        means = {name: {"jaccard": value} for name, value in old.get("mean", {}).items()}
        found = {"maps": means, "images": old.get("images")} if means else {}
    if not found:
        return {}
    measures = [
        m for m in map_agreement.MEASURES if any(m in row for row in found["maps"].values())
    ]
    rows = []
    for name, row in found["maps"].items():
        cells = []
        for measure in measures:
            paper = number(theirs[name]) if measure == "jaccard" and name in theirs else None
            bounds = row.get("intervals", {}).get(measure)
            cells.append((number(row[measure]), _bounds(bounds), paper))
        rows.append((name, cells))
    return {
        "headings": [_MEASURES[measure] for measure in measures],
        "rows": rows,
        "images": found["images"],
        "chance": number(found["lesion_area"]) if "lesion_area" in found else None,
    }


def _case(
    run: Run, i: int, maps: Mapping[str, np.ndarray], blend: Mapping[str, Any]
) -> dict[str, Any]:
    cases, names = run.cases, run.class_names
    assert cases is not None
    label, prediction = (
        class_index(f"test_cases.npz, {key}", cases[key][i], names)
        for key in ("label", "prediction")
    )
    facts = [f"p = {float(cases['probability'][i]):.3f}"]
    if "probabilities" in cases:
        p = cases["probabilities"][i]
        if label != prediction:
            facts.append(f"{names[label]} {p[label]:.3f}")
        others = [c for c in np.argsort(-p, kind="stable") if c not in (label, prediction)]
        facts += [f"then {names[c]} {p[c]:.3f}" for c in others[:1]]
    about = {
        name: str(cases[f"metadata/{name}"][i])
        for name in ("age", "sex", "localization", "dx_type")
        if f"metadata/{name}" in cases and str(cases[f"metadata/{name}"][i])
    }
    image, mask = _picture(cases, i)
    return {
        "image_id": cases["image_id"][i],
        "truth": names[label],
        "predicted": names[prediction],
        "hit": label == prediction,
        "facts": ", ".join(facts),
        "about": ", ".join(f"{value} years" if k == "age" else value for k, value in about.items()),
        "border": charts.border(mask) if mask.any() else None,
        "views": _views(image, maps, i, blend),
    }


def _picture(cases: Mapping[str, np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray]:
    """The image and its mask at their own size; those that the network saw, of older versions."""
    if f"picture/{i}" in cases:
        return gallery.decoded(cases[f"picture/{i}"]), gallery.decoded(cases[f"picture_mask/{i}"])
    image = cases["image"][i]
    return image, cases["mask"][i] if "mask" in cases else np.zeros(image.shape[:2], np.uint8)


def _views(
    image: np.ndarray, maps: Mapping[str, np.ndarray], i: int, blend: Mapping[str, Any]
) -> list[tuple[charts.Picture, str]]:
    """Pictures and captions of a case: the image, and of each map its overlay and itself."""
    views = [(charts.photo(image, "the image"), "image")]
    for name, stack in maps.items():
        height, width = stack.shape[-2:]
        size = f"{height}×{width}"
        blocks = charts.blocks(
            stack[i], image.shape[:2], f"attention map {name}", blend["colormap"]
        )
        if overlays.is_flat(stack[i]):
            over, caption = image, f"{name}: flat, no position stands out"
            size += f", peak {overlays.peak(stack[i]):.2f}"
        else:
            over, caption = overlays.overlay(image, stack[i], **blend), name
            single = overlays.aggregate(stack[i])
            mean = float(single.mean())
            least = f", least {single.min() / mean:.1f}" if mean > 0 else ""
            size += f", peak {overlays.peak(stack[i]):.1f}{least}"
        views.append((charts.photo(over, f"attention {name} over the image"), caption))
        views.append((blocks, size))
    return views


def _bounds(interval: list[float] | None) -> str:
    return f"{number(interval[0])}–{number(interval[1])}" if interval else ""


def reference_of(run: Run) -> dict[str, Any] | None:
    """The paper's result for this run; None if there is none for its classes."""
    found = reference_results.for_run(run.config, run.data_name)
    if found and "per_class" in found and set(found["per_class"]) != set(run.class_names):
        return None
    return found
