"""Markdown tables of all results; one function per benchmark, in the order of the page."""

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import goals, measure

Row = Mapping[str, Any]
#: By heading, a format string for the fields of a row, or a function of a row.
Columns = dict[str, Any]

PEERS = {
    "definition": "plain JAX",
    "keras_tensorflow": "Keras, TensorFlow",
    "keras_jax": "Keras, JAX",
    "torch": "PyTorch",
    "onnx": "ONNX Runtime",
}
#: Those of the attention layer, of the training step, and of prediction.
KERAS = ("keras_tensorflow", "keras_jax")
LAYERS = ("definition", "keras_jax", "keras_tensorflow")
STEPS = (*KERAS, "torch")
FORWARD = (*STEPS, "onnx")
#: Largest difference of a peer that computes the same, relative to the largest value.
LAYER_BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
STEP_BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2}
#: Models in the order of the tables.
BACKBONES = ("irv2", "densenet201", "resnet50", "resnet34", "vgg16", "koefler_cnn")
MODELS = tuple(name + suffix for name in BACKBONES for suffix in ("", "_sa"))

#: By benchmark, the blocks of Markdown that show its result.
TABLES: dict[str, Callable[[Row], str]] = {}


def shown(make: Callable[[Row], Iterator[str]]) -> Callable[[Row], str]:
    """Joins the blocks that a function of a result yields, and adds it to `TABLES`."""

    @functools.wraps(make)
    def joined(result: Row) -> str:
        return "\n\n".join(filter(None, make(result)))

    TABLES[make.__name__] = joined
    return joined


def table(columns: Columns, rows: Iterable[Any]) -> str:
    """A Markdown table; – where a field of a format string is missing."""

    def filled(cell: Any, row: Any) -> str:
        if not isinstance(cell, str):
            return str(cell(row))
        try:
            return cell.format(**row)
        except KeyError:
            return "–"

    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(filled(cell, row) for cell in columns.values()) + " |")
    return "\n".join(lines)


def span(values: Iterable[float]) -> str:
    """The smallest and the largest to three digits; one number if these are the same."""
    both = sorted(values)
    ends = (f"{each:.3g}" if each < 100 else f"{each:,.0f}" for each in (both[0], both[-1]))
    return "–".join(dict.fromkeys(ends))


def on_machine(machine: Row) -> str:
    """A machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = f"{machine['device']}; {machine['processor']}, {machine['cores']} cores; {versions}"
    return facts + (f"; load {machine['load_before']:.1f}." if "load_before" in machine else ".")


def all_goals(results: Iterable[Row]) -> str:
    """A table of all goals, and how many cases reached each."""
    rows = []
    for result in results:
        found = goals.judge(result)
        for goal in dict.fromkeys(verdict.goal for verdict in found):
            cases = [verdict for verdict in found if verdict.goal == goal]
            missed = [f"{each.case}: {each.value:.3g}" for each in cases if not each.reached]
            reached = [each.value for each in cases if each.reached]
            row = {"place": f"{result['benchmark']}, {result['machine']['device']}", "goal": goal}
            row["reached"] = f"{len(reached)} of {len(cases)}"
            row["reached"] += f": {span(reached)}" if reached else ""
            rows.append(row | {"missed": "; ".join(missed)})
    columns = {"benchmark, device": "{place}", "goal": "{goal}"}
    return table(columns | {"reached": "{reached}", "missed": "{missed}"}, rows)


def _verdicts(result: Row, row: Row) -> str:
    return "; ".join(str(each) for each in goals.judge(result) if each.row is row)


def _verdict_list(result: Row, form: str) -> str:
    return "\n".join(f"- {v.case}, {v}: {v.value:{form}}." for v in goals.judge(result))


def _skipped(rows: Sequence[Row]) -> str:
    found = {f"{PEERS[name]}: {why}" for row in rows for name, why in row["skipped"].items()}
    return f"Not measured: {'; '.join(sorted(found))}." if found else ""


def _speeds(measured: Iterable[tuple[str, float]]) -> str:
    """Operations per second of large products, by type."""
    by_type: dict[str, list[float]] = {}
    for dtype, speed in measured:
        by_type.setdefault(dtype, []).append(speed / 1e9)
    return ", ".join(f"{span(each)} GFLOP/s {dtype}" for dtype, each in by_type.items())


def _of(result: Row, measured: str) -> list[Row]:
    return [row for row in result["rows"] if row["measured"] == measured]


@shown
def attention_kernel(result: Row) -> Iterator[str]:
    """A row for each case and pass."""

    def ours(row: Row) -> str:
        median, low, high = (_ms(row["seconds"]["ours"][each]) for each in ("median", "min", "max"))
        return f"{median} ({low}–{high})"

    def peer(name: str, row: Row) -> str:
        if name not in row["seconds"]:
            return "–"
        differences = row["differences"].get(name, {"": 0.0}).values()
        sign = " ≠" if max(differences) > LAYER_BOUNDS[row["dtype"]] else ""
        return f"{_ms(row['seconds'][name]['median'])} = {row['speedup'][name]:.1f}×{sign}"

    rows = result["rows"]
    columns: Columns = {
        "": lambda row: row["variant"] + ", forward" + " + backward" * (row["pass"] == "both"),
        "H×W×C, K": "{shape[0]}×{shape[1]}×{shape[2]}, {shape[3]}",
        "batch": "{batch}, {dtype}",
        "ours, ms": ours,
        **{PEERS[name]: functools.partial(peer, name) for name in LAYERS},
        "limit, ms": lambda row: f"{_ms(row['limit'])} ({row['of_limit']:.0%})",
        "goal": functools.partial(_verdicts, result),
    }
    yield table(columns, rows)
    bandwidth = span(row["bytes_per_second"] / 1e9 for row in rows)
    speeds = _speeds((row["dtype"], row["flops_per_second"]) for row in rows)
    worst = max(max(row["differences"]["ours"].values()) for row in rows)
    yield (
        f"Measured: {bandwidth} GB/s, {speeds}. Ours differs from the definition by at most "
        f"{worst:.1e}."
    )
    yield _skipped(rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _ordered_steps(result: Row) -> list[Row]:
    return sorted(
        result["rows"],
        key=lambda row: (row["dtype"] != "bfloat16", row["batch"], MODELS.index(row["model"])),
    )


CASE = {"": "{model}", "batch": "{batch} × {size}², {dtype}"}


def _rates(names: Iterable[str]) -> Columns:
    """Images per second of a model in all ways."""

    def ours(row: Row) -> str:
        mine = row["seconds"]["ours"]
        rate, slowest, fastest = (row["batch"] / mine[each] for each in ("median", "max", "min"))
        return f"{rate:.3g} ({slowest:.3g}–{fastest:.3g})"

    def peer(name: str, row: Row) -> str:
        if name not in row["speedup"]:
            return "–"
        rate, sign = row["batch"] / row["seconds"][name]["median"], " ≠" * differs(name, row)
        return f"{rate:.3g}, ours {row['speedup'][name]:.2f}×{sign}"

    peers = {PEERS[name]: functools.partial(peer, name) for name in names}
    return {**CASE, "ours, images/s": ours, **peers}


def differs(name: str, row: Row) -> bool:
    """Whether a peer's model differs from ours: in its size, or in its first loss."""
    mine, other = row["facts"]["ours"], row["facts"][name]
    if other["kernels"] != mine["kernels"]:
        return True
    if "our_loss" not in other:
        return False
    apart = abs(other["our_loss"] / other["loss"] - 1)
    return other["parameters"] != mine["parameters"] or not apart <= STEP_BOUNDS[row["dtype"]]


@shown
def train_step(result: Row) -> Iterator[str]:
    """A row for each model, batch and type."""
    rows = _ordered_steps(result)
    columns: Columns = {
        **_rates(STEPS),
        "of ours without attention": "{speedup[without]:.3f}×",
        "utilisation": "{utilisation:.0%}",
        "memory, GiB": lambda row: f"{row['memory']['ours'] / 2**30:.2f}",
        "compiling, s": "{facts[ours][compile]:.0f}",
        "goal": functools.partial(_verdicts, result),
    }
    yield table(columns, rows)
    facts = [row["facts"][name] for row in rows for name in STEPS if name in row["facts"]]
    versions = {f"{k} {v}" for each in facts for k, v in each.items() if isinstance(v, str)}
    speeds = _speeds((row["dtype"], row["peak"]) for row in rows)
    peers = f" Peers: {', '.join(sorted(versions))}." if versions else ""
    yield f"Speed of a large product: {speeds}.{peers}"
    yield _skipped(rows)


def speeds(result: Row) -> str:
    """The short table of training steps: our speed over each peer's, where a goal is set."""
    names = {**{name: PEERS[name] for name in STEPS}, "without": "without attention"}
    judged = {id(verdict.row) for verdict in goals.judge(result)}
    return table(
        CASE | {text: f"{{speedup[{name}]:.2f}}×" for name, text in names.items()},
        (row for row in _ordered_steps(result) if id(row) in judged),
    )


@shown
def input_pipeline(result: Row) -> Iterator[str]:
    """The rates, the waiting, and the goals."""

    def rate(row: Row) -> str:
        if "skipped" in row:
            return f"skipped: {row['skipped']}"
        filling = f" (filling {row['filling']:,.0f})" if "filling" in row else ""
        return f"{row['images_per_second']:,.0f}{filling}"

    def pipeline(row: Row) -> str:
        return row["pipeline"] + (f" ({row['version']})" if "version" in row else "")

    rates: Columns = {
        "JPEGs": lambda row: f"{row['images']}, {row['bytes'] / 1e3:.0f} KB",
        "pipeline": pipeline,
        "images/s": rate,
        "lowest to highest": "{lowest:,.0f} to {highest:,.0f}",
        "difference": "{difference:.2f}",
    }
    waiting: Columns = {
        "training from": "{images} at {size}×{size}",
        "pipeline": "{pipeline}",
        "ms per step": "{step_ms:.2f}",
        "step in place over this": "{share:.1%}",
    }
    yield f"Batches of {result['batch']} images of {result['size']}×{result['size']}."
    yield table(rates, _of(result, "rate"))
    yield table(waiting, _of(result, "waiting"))
    yield _verdict_list(result, ".3f")


@shown
def inference(result: Row) -> Iterator[str]:
    """The model alone, decoding alone, and prediction from files."""
    models = _of(result, "model")
    yield table(_rates(FORWARD), models)
    yield _skipped(models)
    decoding = {
        "decoding to": "{size}×{size}",
        "whole, images/s": "{images_per_second[whole]:,.0f}",
        "scaled, images/s": "{images_per_second[scaled]:,.0f}",
        "difference": "{difference:.2f}",
    }
    yield table(decoding, _of(result, "decoding"))
    files = {
        "model": "{model}, {size}×{size}",
        "from files, images/s": "{images_per_second[files]:,.1f}",
        "decoding": "{images_per_second[decoding]:,.1f}",
        "model alone": "{images_per_second[model]:,.1f}",
        "of the slower": "{share:.1%}",
    }
    yield table(files, _of(result, "files"))
    yield _verdict_list(result, ".3f")


@shown
def scaling(result: Row) -> Iterator[str]:
    """The cost of a step, and its communication."""
    purposes = ("statistics", "gradients", "metrics")
    costs = {
        "fixed batch": "{fixed}",
        "devices": "{devices}",
        "images": "{batch}",
        "ms per step": "{median_ms:.1f}",
        "lowest to highest": "{min_ms:.1f} to {max_ms:.1f}",
        "per image": "{per_image:.2f}",
    }

    def kinds(row: Row) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in row["instructions"].items()) or "none"

    exchanged: Columns = {
        "devices": "{devices}",
        "instructions": kinds,
        **{name: f"{{bytes[{name}]:,}} / {{by_hand[{name}]:,}}" for name in purposes},
        "": lambda row: "equal" if row["bytes"] == row["by_hand"] else "**different**",
    }
    yield f"Images of {result['size']}×{result['size']}."
    yield table(costs, _of(result, "cost"))
    yield table(exchanged, _of(result, "communication"))


@shown
def patch_throughput(result: Row) -> Iterator[str]:
    """A row for each way, and its speed relative to plain images."""

    def rate(row: Row) -> str:
        rounds = ", ".join(f"{each:.1f}" for each in row["rounds"])
        return f"{row['patches_per_second']:.1f} ({rounds})"

    columns: Columns = {
        "": "{way}",
        "patches/s, median (rounds)": rate,
        "of plain": "{of_plain:.3f}×",
        "goal": functools.partial(_verdicts, result),
    }
    yield table(columns, result["rows"])
    images, crops, size = result["batch"]
    yield (
        f"{result['backbone']}, {result['dtype']}, {images} images of {crops} crops of "
        f"{size}×{size} pixels per step."
    )


@shown
def aot(result: Row) -> Iterator[str]:
    """A row for each program."""

    def number(kinds: Sequence[str], row: Row) -> str:
        found = [row["kernels"][kind] for kind in kinds if kind in row["kernels"]]
        runs, moved = (sum(each[field] for each in found) for field in ("runs", "bytes"))
        return f"{runs}, {moved / 1e9:.2f}" if runs else "–"

    def exchanged(row: Row) -> str:
        each = row["collectives"]
        return f"{each['count']}, {each['bytes'] / 1e6:.1f}" if row["devices"] > 1 else "–"

    def model(row: Row) -> str:
        ways = {
            "recomputing blocks": row["remat"] == "blocks",
            f"in {row['accumulate']} parts": row["accumulate"] > 1,
            f"{row['resident']:,} images in memory": row["resident"] > 0,
            "statistics of each device": row["groups"] > 1,
        }
        return ", ".join([row["model"], *(way for way, used in ways.items() if used)])

    columns: Columns = {
        "": model,
        "target": "{devices} × {target}",
        "images each": "{batch}, {dtype}",
        "compiling, CPU s": lambda row: f"{row['compile']:.0f}" if row["compile"] else "–",
        "memory, GB": lambda row: f"{row['memory'] / 1e9:.1f}",
        "TFLOP": lambda row: f"{row['flops'] / 1e12:.2f}",
        "GB": lambda row: f"{row['bytes'] / 1e9:.1f}",
        "of it float32": lambda row: f"{row['float32_bytes'] / row['bytes']:.0%}",
        "preprocessing": "{preprocess_share:.1%}",
        "kernels": lambda row: sum(each["runs"] for each in row["kernels"].values()),
        "copies": functools.partial(number, ("copy", "transpose")),
        "gathers": functools.partial(number, ("gather", "scatter", "select-and-scatter")),
        "exchanges, MB": exchanged,
        "estimated images/s": lambda row: f"{row['estimate']['images_per_second']:,.0f} each",
        "estimated MFU": lambda row: f"{row['estimate']['mfu']:.0%}",
    }
    yield table(columns, result["rows"])


@shown
def parity(result: Row) -> Iterator[str]:
    """Outputs and gradients, and training; what exceeds its bound is bold."""
    bounds = result["bounds"]

    def compared(*paths: str) -> Columns:
        """Differences, by headings such as ``logits, away``."""

        def cell(path: str, name: str, row: Row) -> str:
            found = goals.lookup(row, f"differences/{path}/difference")
            return f"{found:.1e}" if found <= bounds[name] else f"**{found:.1e}**"

        columns = {}
        for path in paths:
            draw, _, name = path.rpartition("/")
            heading = ", ".join(filter(None, (name, draw.removesuffix(" from kinks"))))
            columns[heading] = functools.partial(cell, path, name)
        return columns

    def seen(mutation: str, row: Row) -> str:
        found = row["mutations"][mutation]
        bound = bounds["rate" if mutation.startswith("rate") else "movements"]
        return f"{found:.1e}" if found > bound else f"**{found:.1e}**"

    mutations = [row["mutations"] for row in result["rows"] if "mutations" in row]
    about: Columns = {
        "model": lambda row: row["model"] + " †" * measure.stale(row),
        "size, batch": "{image_size}, {batch}",
    }
    away = "away from kinks"
    columns: dict[str, Columns] = {
        "outputs": {
            "seeds": lambda row: ", ".join(map(str, row["seeds"])),
            "endpoints": "{endpoints}",
            "parameters": "{parameters}",
            **compared("ordinary/logits", "ordinary/endpoints"),
            **compared(f"{away}/logits", f"{away}/endpoints", f"{away}/gradients"),
        },
        "training": {
            "steps, rate": "{steps}, {rate}",
            "Keras' loss": lambda row: f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}",
            **compared("losses", "statistics", "movements", "rate"),
            "moved": "{moved} of {parameters}",
            **{name: functools.partial(seen, name) for name in (mutations or [{}])[0]},
        },
    }
    for kind, wanted in result["models"].items():
        of_kind = {row["model"]: row for row in result["rows"] if row["kind"] == kind}
        rows = [of_kind[name] for name in wanted if name in of_kind]
        if compared_rows := [row for row in rows if "failed" not in row]:
            yield table(about | columns[kind], compared_rows)
        for row in rows:
            if "failed" in row:
                yield f"**{row['model']} failed**: {row['failed']}"
        if missing := [name for name in wanted if name not in of_kind]:
            yield f"**Not compared** ({kind}): {', '.join(missing)}."
    keras = sorted({row["keras"] for row in result["rows"]})
    listed = ", ".join(f"{name} {bound}" for name, bound in bounds.items())
    yield f"Bounds: {listed}. Keras {', '.join(keras)}."


@shown
def runs(result: Row) -> Iterator[str]:
    """A row for each kind of run, mean and standard deviation over its seeds."""
    scale, digits = (100, 1) if result["percent"] else (1, 3)
    by_name: dict[str, list[Row]] = {}
    for row in result["rows"]:
        if "values" in row:
            by_name.setdefault(row["row"], []).append(row)
    first = next(iter(by_name.values()))[0]
    single = all(len(of_name) == 1 for of_name in by_name.values())

    def number(value: float | None) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    def cell(column: str, of_name: Sequence[Row]) -> str:
        found = [row["values"][column] for row in of_name]
        text = number(found[0])
        if len(found) > 1:
            text = f"{number(statistics.mean(found))} ± {number(statistics.stdev(found))}"
        published = of_name[0].get("reference")
        return f"{text} ({number(published.get(column))})" if published else text

    columns: Columns = {"": lambda of_name: of_name[0]["row"]}
    columns |= {name: functools.partial(cell, name) for name in first["values"]}
    if single and "minutes" in first:
        columns["epochs"] = lambda of_name: of_name[0]["epochs"]
        columns["minutes"] = lambda of_name: f"{of_name[0]['minutes']:.0f}"
    parts = [f"Test part ({first['test_images']:,} images)."]
    if not single:
        trained = [row for row in result["rows"] if "minutes" in row]
        seeds = ", ".join(f"{row['seed']} and {row['split_seed']}" for row in trained)
        minutes = ", ".join(f"{row['minutes']:.1f}" for row in trained)
        parts += [
            f"Mean ± standard deviation over runs; seed and seed of the split: {seeds}.",
            f"Training took {minutes} minutes.",
        ]
    parts += [result["note"]] if result["note"] else []
    parts.append(f"{first['device']}, jax {first['versions']['jax']}.")
    yield table(columns, by_name.values())
    yield " ".join(parts)
    yield _verdict_list(result, "+.4f")
