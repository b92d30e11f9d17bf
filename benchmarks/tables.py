"""Markdown tables of all results; one function per benchmark."""

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import goals, measure

Row = Mapping[str, Any]
#: By heading, a format string for the fields of a row, or a function of a row.
Columns = dict[str, Any]

KERAS = {"keras_jax": "Keras, JAX", "keras_tensorflow": "Keras, TensorFlow"}
#: Peers of the attention layer, and of the training step.
LAYERS = {"definition": "plain JAX", **KERAS}
STEPS = {"keras_tensorflow": "Keras, TensorFlow", "keras_jax": "Keras, JAX", "torch": "PyTorch"}
#: Largest difference of a peer that computes the same, relative to the largest value.
LAYER_BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
STEP_BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2}
#: Models in the order of the tables.
BACKBONES = ("irv2", "densenet201", "resnet50", "resnet34", "vgg16", "koefler_cnn")
MODELS = tuple(name + suffix for name in BACKBONES for suffix in ("", "_sa"))
#: Height, width, channels and heads of the attention layers: Inception-ResNet-v2 as released and as
#: in the paper, DenseNet-201 and ResNet-50, ResNet-34 and VGG-16, the 12×12 variant, Köfler's CNN.
SHAPES = (
    "8x8x192x16",
    "8x8x2080x16",
    "7x7x128x16",
    "7x7x2048x16",
    "28x28x128x16",
    "28x28x512x16",
    "12x12x160x16",
    "8x8x512x12",
)


def table(columns: Columns, rows: Iterable[Any]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (
            cell.format(**row) if isinstance(cell, str) else str(cell(row))
            for cell in columns.values()
        )
        lines.append("| " + " | ".join(cells) + " |")
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


def _skipped(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    found = {f"{names[name]}: {why}" for row in rows for name, why in row["skipped"].items()}
    return f"\nNot measured: {'; '.join(sorted(found))}." if found else ""


def _speeds(measured: Iterable[tuple[str, float]]) -> str:
    """Operations per second of large products, by type."""
    by_type: dict[str, list[float]] = {}
    for dtype, speed in measured:
        by_type.setdefault(dtype, []).append(speed / 1e9)
    return ", ".join(f"{span(each)} GFLOP/s {dtype}" for dtype, each in by_type.items())


def attention_kernel(result: Row) -> str:
    """A row for each case and pass."""
    known = [[int(each) for each in shape.split("x")] for shape in SHAPES]

    def order(row: Row) -> tuple:
        shape, variant, what = row["shape"], row["variant"] == "paper", row["pass"] == "both"
        place = known.index(shape) if shape in known else len(known)
        return row["batch"], place, shape, row["dtype"], variant, what

    def ours(row: Row) -> str:
        median, low, high = (_ms(row["seconds"]["ours"][each]) for each in ("median", "min", "max"))
        return f"{median} ({low}–{high})"

    def peer(name: str, row: Row) -> str:
        if name not in row["seconds"]:
            return "–"
        differences = row["differences"].get(name, {"": 0.0}).values()
        sign = " ≠" if max(differences) > LAYER_BOUNDS[row["dtype"]] else ""
        return f"{_ms(row['seconds'][name]['median'])} = {row['speedup'][name]:.1f}×{sign}"

    rows = sorted(result["rows"], key=order)
    columns: Columns = {
        "": lambda row: (
            f"{row['variant']}, {'forward + backward' if row['pass'] == 'both' else 'forward'}"
        ),
        "H×W×C, K": "{shape[0]}×{shape[1]}×{shape[2]}, {shape[3]}",
        "batch": "{batch}, {dtype}",
        "ours, ms": ours,
        **{text: functools.partial(peer, name) for name, text in LAYERS.items()},
        "limit, ms": lambda row: f"{_ms(row['limit'])} ({row['of_limit']:.0%})",
        "goal": functools.partial(_verdicts, result),
    }
    bandwidth = span(row["bytes_per_second"] / 1e9 for row in rows)
    speeds = _speeds((row["dtype"], row["flops_per_second"]) for row in rows)
    worst = max(max(row["differences"]["ours"].values()) for row in rows)
    return (
        f"{table(columns, rows)}\n\nOurs: median (shortest–longest). Peers: median = multiple of "
        "ours; ≠: computes something else. Limit: see above; in brackets, the share of it that "
        f"ours reaches; measured: {bandwidth} GB/s, {speeds}. Ours differs from the definition by "
        f"at most {worst:.1e}.{_skipped(rows, LAYERS)}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _ordered_steps(result: Row) -> list[Row]:
    return sorted(
        result["rows"],
        key=lambda row: (row["dtype"] != "bfloat16", row["batch"], MODELS.index(row["model"])),
    )


def train_step(result: Row) -> str:
    """A row for each model, batch and type."""

    def ours(row: Row) -> str:
        mine = row["seconds"]["ours"]
        rate, slowest, fastest = (row["batch"] / mine[each] for each in ("median", "max", "min"))
        return f"{rate:.3g} ({slowest:.3g}–{fastest:.3g})"

    def peer(name: str, row: Row) -> str:
        if name not in row["speedup"]:
            return "–"
        rate, sign = row["images_per_second"][name], " ≠" if differs(name, row) else ""
        return f"{rate:.3g}, ours {row['speedup'][name]:.2f}×{sign}"

    def without(row: Row) -> str:
        return f"{row['speedup']['without']:.3f}×" if "without" in row["speedup"] else "–"

    columns: Columns = {
        "": "{model}",
        "batch": "{batch} × {size}², {dtype}",
        "ours, images/s": ours,
        **{text: functools.partial(peer, name) for name, text in STEPS.items()},
        "of ours without attention": without,
        "utilisation": "{utilisation:.0%}",
        "memory, GiB": lambda row: f"{row['memory']['ours'] / 2**30:.2f}",
        "compiling, s": "{facts[ours][compile]:.0f}",
        "goal": functools.partial(_verdicts, result),
    }
    rows = _ordered_steps(result)
    facts = [row["facts"][name] for row in rows for name in STEPS if name in row["facts"]]
    versions = {f"{k} {v}" for each in facts for k, v in each.items() if isinstance(v, str)}
    peers = f"\nPeers: {', '.join(sorted(versions))}." if versions else ""
    speeds = _speeds((row["dtype"], row["peak"]) for row in rows)
    return (
        f"{table(columns, rows)}\n\nOurs: median (slowest–fastest). Peers: median, and ours "
        "relative to it; ≠: computes something else. Memory is ours: of the device, or on a CPU "
        f"the process' peak. Speed of a large product: {speeds}.{peers}{_skipped(rows, STEPS)}"
    )


def differs(name: str, row: Row) -> bool:
    """Whether a peer's model differs from ours: in its size, or in its first loss."""
    mine, other = row["facts"]["ours"], row["facts"][name]
    if name not in KERAS:
        return other["kernels"] != mine["kernels"]
    apart = abs(other["our_loss"] / other["loss"] - 1)
    return other["parameters"] != mine["parameters"] or not apart <= STEP_BOUNDS[row["dtype"]]


def speeds(result: Row) -> str:
    """The short table of training steps: our speed over each peer's, where a goal is set."""

    def ratio(name: str, row: Row) -> str:
        return f"{row['speedup'][name]:.2f}×" if name in row["speedup"] else "–"

    names = {**STEPS, "without": "without attention"}
    columns: Columns = {
        "": "{model}",
        "batch": "{batch} × {size}², {dtype}",
        **{text: functools.partial(ratio, name) for name, text in names.items()},
    }
    judged = {id(verdict.row) for verdict in goals.judge(result)}
    return table(columns, (row for row in _ordered_steps(result) if id(row) in judged))


def input_pipeline(result: Row) -> str:
    """The rates, the waiting, and the goals."""

    def rate(row: Row) -> str:
        if "skipped" in row:
            return f"skipped: {row['skipped']}"
        filling = f" (filling {row['filling']:,.0f})" if "filling" in row else ""
        return f"{row['images_per_second']:,.0f}{filling}"

    def measured(form: str, row: Row) -> str:
        return "" if "skipped" in row else form.format(**row)

    rates: Columns = {
        "JPEGs": lambda row: f"{row['images']}, {row['bytes'] / 1e3:.0f} KB",
        "pipeline": lambda row: (
            row["pipeline"] + (f" ({row['version']})" if "version" in row else "")
        ),
        "images/s": rate,
        "lowest to highest": functools.partial(measured, "{lowest:,.0f} to {highest:,.0f}"),
        "difference": functools.partial(measured, "{difference:.2f}"),
    }
    waiting: Columns = {
        "training from": "{images} at {size}×{size}",
        "pipeline": "{pipeline}",
        "ms per step": "{step_ms:.2f}",
        "step in place over this": "{share:.1%}",
    }
    return "\n\n".join(
        [
            f"Batches of {result['batch']} images of {result['size']}×{result['size']}. "
            "Difference: the mean difference from Grain's pixels, in grey levels.",
            table(rates, (row for row in result["rows"] if row["measured"] == "rate")),
            table(waiting, (row for row in result["rows"] if row["measured"] == "waiting")),
            _verdict_list(result, ".3f"),
        ]
    )


def inference(result: Row) -> str:
    """The model alone, decoding alone, and prediction from files."""

    def of(measured: str) -> list[Row]:
        return [row for row in result["rows"] if row["measured"] == measured]

    def speed(name: str, row: Row) -> str:
        if name not in row["speedup"]:
            return ""
        mark = " ≠" if name in row["differs"] else ""
        return f"{row['speedup'][name]:.2f}{mark}"

    names = {**STEPS, "onnx": "ONNX Runtime"}
    models: Columns = {
        "model": "{model}",
        "batch": "{batch}",
        "ms": lambda row: f"{1e3 * row['seconds']['ours']['median']:.1f}",
        "images/s": lambda row: f"{row['batch'] / row['seconds']['ours']['median']:.1f}",
        **{f"× {text}": functools.partial(speed, name) for name, text in names.items()},
    }
    decoding: Columns = {
        "JPEGs": "{images}, to {size}×{size}",
        "whole, images/s": "{images_per_second[whole]:,.0f}",
        "scaled, images/s": "{images_per_second[scaled]:,.0f}",
        "speedup": "{speedup:.2f}",
        "difference": "{difference:.2f}",
    }
    files: Columns = {
        "model": "{model}, {size}×{size}",
        "from files, images/s": "{images_per_second[files]:,.1f}",
        "decoding": "{images_per_second[decoding]:,.1f}",
        "model alone": "{images_per_second[model]:,.1f}",
        "of the slower": "{share:.1%}",
    }
    return "\n\n".join(
        [
            table(models, of("model")) + "\n" + _skipped(of("model"), names),
            table(decoding, of("decoding")),
            table(files, of("files")),
            _verdict_list(result, ".3f"),
        ]
    )


def scaling(result: Row) -> str:
    """The cost of a step, and its communication."""

    def kinds(row: Row) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in row["instructions"].items()) or "none"

    costs: Columns = {
        "fixed batch": "{fixed}",
        "devices": "{devices}",
        "images": "{batch}",
        "ms per step": "{median_ms:.1f}",
        "lowest to highest": "{min_ms:.1f} to {max_ms:.1f}",
        "per image": "{per_image:.2f}",
    }
    purposes = ("statistics", "gradients", "metrics")
    exchanged: Columns = {
        "devices": "{devices}",
        "instructions": kinds,
        **{name: f"{{bytes[{name}]:,}} / {{by_hand[{name}]:,}}" for name in purposes},
        "": lambda row: "equal" if row["bytes"] == row["by_hand"] else "**different**",
    }
    return "\n\n".join(
        [
            f"The step of `attention_cnn` on images of {result['size']}×{result['size']}. Per "
            "image: the time per image, relative to one device; devices that share a CPU's cores "
            "cannot get far below 1, real ones can go down to 1 / devices.",
            table(costs, (row for row in result["rows"] if row["measured"] == "cost")),
            "Bytes exchanged in a step, found in the compiled program / counted by hand:",
            table(exchanged, (row for row in result["rows"] if row["measured"] != "cost")),
        ]
    )


def patch_throughput(result: Row) -> str:
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
    images, crops, size = result["batch"]
    return (
        f"{table(columns, result['rows'])}\n\n{result['backbone']}, {result['dtype']}, {images} "
        f"images of {crops} crops of {size}×{size} pixels per step."
    )


def parity(result: Row) -> str:
    """Outputs and gradients, and training; what exceeds its bound is bold."""
    bounds, parts = result["bounds"], []

    def cell(name: str, draw: str, row: Row) -> str:
        found = (row["differences"][draw] if draw else row["differences"])[name]["difference"]
        return f"{found:.1e}" if found <= bounds[name] else f"**{found:.1e}**"

    def seen(mutation: str, row: Row) -> str:
        found = row["mutations"][mutation]
        bound = bounds["rate" if mutation.startswith("rate") else "movements"]
        return f"{found:.1e}" if found > bound else f"**{found:.1e}**"

    def model(row: Row) -> str:
        return row["model"] + " †" * measure.stale(row)

    columns: Columns = {
        "model": model,
        "size, batch": "{image_size}, {batch}",
        "endpoints": "{endpoints}",
        "parameters": "{parameters}",
    }
    for draw, names in (
        ("ordinary", ("logits", "endpoints")),
        ("away from kinks", ("logits", "endpoints", "gradients")),
    ):
        for name in names:
            columns[f"{name}, {draw.split()[0]}"] = functools.partial(cell, name, draw)
    rows, failures = _of_kind(result, "outputs")
    parts += [table(columns, rows)] if rows else []
    parts += failures
    if rows:
        parts.append(
            "Largest difference of any element from Keras, relative to the largest element of "
            f"that tensor, over seeds {' and '.join(map(str, rows[0]['seeds']))}: of the logits, "
            "of all endpoints, of the gradients with respect to the images and every parameter. "
            "Ordinary: random weights; away: random weights away from the kinks of ReLUs and the "
            "ties of max pools, without which gradients are not comparable. Bounds: logits and "
            f"endpoints {bounds['endpoints']}, gradients {bounds['gradients']}."
        )
    trained = ("losses", "statistics", "movements", "rate")
    rows, failures = _of_kind(result, "training")
    if rows:
        columns = {
            "model": model,
            "size, batch": "{image_size}, {batch}",
            "Keras' loss": lambda row: f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}",
            **{name: functools.partial(cell, name, "") for name in trained},
            "moved": "{moved} of {parameters}",
            **{name: functools.partial(seen, name) for name in rows[0]["mutations"]},
        }
        parts.append(table(columns, rows))
    parts += failures
    if rows:
        parts.append(
            f"Training: {rows[0]['steps']} steps of Keras' Adam({rows[0]['rate']}, epsilon 0.1) on "
            "one batch, batch norm in training mode, no dropout, weights away from the kinks; "
            "Keras' loss at the first and the last step. Largest relative difference of the loss "
            "at any step, and of how far batch norm's moving statistics and all parameters moved, "
            "relative to the largest movement in the same array; rate: of what is common to the "
            "movements of all arrays, a median. "
            f"Bounds: {', '.join(f'{n} {bounds[n]}' for n in trained)}. Then how many arrays moved "
            "(biases that batch norm cancels cannot), and the difference that each error would "
            "make in the array where it shows least: an array that is not trained, its gradient "
            "times 1.5 or negated, which must exceed the bound of movements; and a learning rate "
            "0.1% higher, which must exceed that of the rate."
        )
    if any(map(measure.stale, result["rows"])):
        parts.append("†: a file that the row covers has changed since the commit that it is of.")
    keras = sorted({row["keras"] for row in result["rows"]})
    return "\n\n".join([*parts, f"All in float32, with Keras {', '.join(keras)}."])


def _of_kind(result: Row, kind: str) -> tuple[list[Row], list[str]]:
    """The rows of parity of a kind in the order of the models, and what to say of the others."""
    found = {row["model"]: row for row in result["rows"] if row["kind"] == kind}
    rows = [found[name] for name in result["models"][kind] if name in found]
    missing = [name for name in result["models"][kind] if name not in found]
    failed = [f"**{row['model']} failed**: {row['failed']}" for row in rows if "failed" in row]
    if missing:
        failed.append(f"**Not compared** ({kind}): {', '.join(missing)}.")
    return [row for row in rows if "failed" not in row], failed


def runs(result: Row) -> str:
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
    text = f"{table(columns, by_name.values())}\n\n{' '.join(parts)}\n\n"
    return (text + _verdict_list(result, "+.4f")).strip()


def aot(result: Row) -> str:
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
    return (
        f"{table(columns, result['rows'])}\n\nPer device. Copies and gathers: their number and GB. "
        "Estimates are bounds by peak speeds; nothing was run."
    )


#: In the order of the page.
TABLES: dict[str, Callable[[Row], str]] = {
    each.__name__: each
    for each in (
        attention_kernel,
        train_step,
        input_pipeline,
        inference,
        scaling,
        patch_throughput,
        aot,
        parity,
        runs,
    )
}
