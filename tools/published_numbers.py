"""Writes docs/published.md, the papers' numbers and what they can be compared with.

python tools/published_numbers.py > docs/published.md
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxattn import reference_results

TABLES = {
    "Datta et al. 2021": ("datta2021", ("1", "2", "3", "4", "")),
    "Köfler 2023": ("koefler2023", ("4", "5")),
    "Gessert et al. 2019": ("gessert2019", ("II", "III", "IV", "V", "VI")),
    "Yan et al. 2019": ("yan2019", ("1", "2")),
}
HEAD = """# Published numbers

Every number of the four papers' tables, the config that reproduces it, and whether a run of that
config can be compared with it. `tools/published_numbers.py` writes this page from
[reference_results.json](../jaxattn/reference_results.json), which reports show beside a run's
numbers. Table 1 of Gessert et al. and table 1 of Köfler list images, not results; table 3 of Yan et
al. is the Jaccard indices of table 2; table 4 (c) of Köfler repeats VGG16+SA of Datta et al.

Numbers of Datta et al. are those that their notebooks print; the paper rounds them. ± is the
population deviation over three folds' models. Trust:
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    lines += [f"- **{name}**: {text}" for name, text in reference_results.TRUST.items()]
    for title, (paper, numbers) in TABLES.items():
        lines += ["", f"## {title}"]
        for number in numbers:
            entries = reference_results.table(paper, number)
            protocols = list(
                dict.fromkeys((e["dataset"], e["split"], e["protocol"]) for e in entries)
            )
            for key in protocols:
                chosen = [e for e in entries if (e["dataset"], e["split"], e["protocol"]) == key]
                heading = f"Table {number}" if number else "In no table"
                lines += ["", f"### {heading}: {key[0]}, {key[1]}", "", *_table(chosen)]
    return "\n".join(lines) + "\n"


def _table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    first = entries[0]
    lines = [f"{first['source']}. Protocol: {first['protocol']}. Trust: **{first['trust']}**."]
    if first["caveat"]:
        lines.append(f"Caveat: {first['caveat']}.")
    lines += [f"Comparable: {verdict(first)}.", ""]
    flat = [_flat(entry) for entry in entries]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    lines.append(f"| row | config | {' | '.join(columns)} |")
    lines.append("|---|---|" + "---|" * len(columns))
    for entry, row in zip(entries, flat, strict=True):
        config = reference_results.config_of(entry)
        cells = [row.get(name, "") for name in columns]
        shown = f"`{config}`" if config else ""
        lines.append(f"| {entry['row']} | {shown} | {' | '.join(cells)} |")
    return lines + _by_class([entry for entry in entries if "per_class" in entry])


def verdict(entry: Mapping[str, Any]) -> str:
    """Whether a run of the config can be compared with an entry, and why not."""
    if not reference_results.config_of(entry):
        return "no, there is no config for it"
    if entry["trust"] != "sound":
        return f"no, {reference_results.TRUST[entry['trust']]}"
    if entry["protocol"].startswith("another"):
        if entry["paper"] == "gessert2019":
            return (
                "yes, with `--config.split.file=gessert2019_ham_split.npz`; else the folds differ"
            )
        return "no, the images are split otherwise"
    return "yes"


def _flat(entry: Mapping[str, Any]) -> dict[str, str]:
    """The measures of all classes together, by name."""
    deviation = entry.get("deviation", {})
    found = {}
    for name in ("accuracy", "balanced_accuracy", "specificity", "micro_auc"):
        if name in entry:
            found[name.replace("_", " ")] = _number(entry[name], deviation.get(name))
    for average in ("macro", "weighted"):
        for name, value in entry.get(average, {}).items():
            found[f"{average} {name}"] = _number(value, deviation.get(average, {}).get(name))
    target = entry.get("target", {})
    for name in ("auc", "average_precision"):
        if name in target:
            found[f"{target['class']} {name.replace('_', ' ')}"] = _number(target[name])
    for name, value in target.get("at_threshold", {}).items():
        found[f"{target['class']} {name}"] = _number(value)
    for name, value in entry.get("printed", {}).items():
        found[f"printed as {name}"] = _number(value)
    for name, value in entry.get("jaccard", {}).get("mean", {}).items():
        found[f"Jaccard {name}"] = _number(value)
    return found


def _by_class(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    if not entries:
        return []
    names = list(entries[0]["per_class"])
    lines = ["", f"| row | measure | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for entry in entries:
        for measure in ("precision", "recall", "f1", "auc", "support"):
            values = [entry["per_class"][name].get(measure) for name in names]
            if None not in values:
                cells = [str(v) if measure == "support" else _number(v) for v in values]
                lines.append(f"| {entry['row']} | {measure} | {' | '.join(cells)} |")
    return lines


def _number(value: float, deviation: float | None = None) -> str:
    return f"{value:g}" + (f" ± {deviation:g}" if deviation is not None else "")


if __name__ == "__main__":
    print(page(), end="")
