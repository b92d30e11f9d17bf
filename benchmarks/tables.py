"""Markdown tables of all results; one function per benchmark."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import goals

Row = Mapping[str, Any]

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


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


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
            values = f": {span(reached)}" if reached else ""
            place = f"{result['benchmark']}, {result['machine']['device']}"
            rows.append((place, goal, f"{len(reached)} of {len(cases)}{values}", "; ".join(missed)))
    return table(["benchmark, device", "goal", "reached", "missed"], rows)


def _verdicts(result: Row, row: Row) -> str:
    return "; ".join(str(each) for each in goals.judge(result) if each.row is row)


def _verdict_list(result: Row, form: str) -> str:
    return "\n".join(f"- {v.case}, {v}: {v.value:{form}}." for v in goals.judge(result))


def _skipped(rows: Sequence[Row], names: Mapping[str, str]) -> list[str]:
    found = {f"{names[name]}: {why}" for row in rows for name, why in row["skipped"].items()}
    return [f"Not measured: {'; '.join(sorted(found))}."] if found else []


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

    rows = sorted(result["rows"], key=order)
    bandwidth = span(row["bytes_per_second"] / 1e9 for row in rows)
    speeds = _speeds((row["dtype"], row["flops_per_second"]) for row in rows)
    worst = max(max(row["differences"]["ours"].values()) for row in rows)
    return "\n".join(
        [
            table(
                ["", "H×W×C, K", "batch", "ours, ms", *LAYERS.values(), "limit, ms", "goal"],
                (_attention_cells(result, row) for row in rows),
            ),
            "",
            "Ours: median (shortest–longest). Peers: median = multiple of ours; ≠: computes "
            "something else. Limit: see above; in brackets, the share of it that ours reaches; "
            f"measured: {bandwidth} GB/s, {speeds}. Ours differs from the definition by at most "
            f"{worst:.1e}.",
            *_skipped(rows, LAYERS),
        ]
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _attention_cells(result: Row, row: Row) -> list[str]:
    height, width, channels, heads = row["shape"]
    median, low, high = (_ms(row["seconds"]["ours"][each]) for each in ("median", "min", "max"))
    cells = [
        f"{row['variant']}, {'forward + backward' if row['pass'] == 'both' else 'forward'}",
        f"{height}×{width}×{channels}, {heads}",
        f"{row['batch']}, {row['dtype']}",
        f"{median} ({low}–{high})",
    ]
    for name in LAYERS:
        if name not in row["seconds"]:
            cells.append("–")
            continue
        differences = row["differences"].get(name, {"": 0.0}).values()
        sign = " ≠" if max(differences) > LAYER_BOUNDS[row["dtype"]] else ""
        peer = _ms(row["seconds"][name]["median"])
        cells.append(f"{peer} = {row['speedup'][name]:.1f}×{sign}")
    return [*cells, f"{_ms(row['limit'])} ({row['of_limit']:.0%})", _verdicts(result, row)]


def _ordered_steps(result: Row) -> list[Row]:
    return sorted(
        result["rows"],
        key=lambda row: (row["dtype"] != "bfloat16", row["batch"], MODELS.index(row["model"])),
    )


def train_step(result: Row) -> str:
    """A row for each model, batch and type."""
    rows = _ordered_steps(result)
    facts = [row["facts"][name] for row in rows for name in STEPS if name in row["facts"]]
    versions = {f"{k} {v}" for each in facts for k, v in each.items() if isinstance(v, str)}
    head = ["", "batch", "ours, images/s", *STEPS.values()]
    head += ["of ours without attention", "utilisation", "memory, GiB", "compiling, s", "goal"]
    speeds = _speeds((row["dtype"], row["peak"]) for row in rows)
    return "\n".join(
        [
            table(head, (_step_cells(result, row) for row in rows)),
            "",
            "Ours: median (slowest–fastest). Peers: median, and ours relative to it; ≠: computes "
            "something else. Memory is ours: of the device, or on a CPU the process' peak. Speed "
            f"of a large product: {speeds}.",
            *([f"Peers: {', '.join(sorted(versions))}."] if versions else []),
            *_skipped(rows, STEPS),
        ]
    )


def differs(name: str, row: Row) -> bool:
    """Whether a peer's model differs from ours: in its size, or in its first loss."""
    mine, other = row["facts"]["ours"], row["facts"][name]
    if name not in KERAS:
        return other["kernels"] != mine["kernels"]
    apart = abs(other["our_loss"] / other["loss"] - 1)
    return other["parameters"] != mine["parameters"] or not apart <= STEP_BOUNDS[row["dtype"]]


def _step_cells(result: Row, row: Row) -> list[str]:
    mine = row["seconds"]["ours"]
    rate, slowest, fastest = (row["batch"] / mine[each] for each in ("median", "max", "min"))
    cells = [
        row["model"],
        f"{row['batch']} × {row['size']}², {row['dtype']}",
        f"{rate:.3g} ({slowest:.3g}–{fastest:.3g})",
    ]
    for name in STEPS:
        if name not in row["speedup"]:
            cells.append("–")
            continue
        sign = " ≠" if differs(name, row) else ""
        peer = row["images_per_second"][name]
        cells.append(f"{peer:.3g}, ours {row['speedup'][name]:.2f}×{sign}")
    return [
        *cells,
        f"{row['speedup']['without']:.3f}×" if "without" in row["speedup"] else "–",
        f"{row['utilisation']:.0%}",
        f"{row['memory']['ours'] / 2**30:.2f}",
        f"{row['facts']['ours']['compile']:.0f}",
        _verdicts(result, row),
    ]


def speeds(result: Row) -> str:
    """The short table of training steps: our speed over each peer's, where a goal is set."""
    judged = {id(verdict.row) for verdict in goals.judge(result)}
    rows = []
    for row in _ordered_steps(result):
        if id(row) in judged:
            ratios = (row["speedup"].get(name) for name in (*STEPS, "without"))
            batch = f"{row['batch']} × {row['size']}², {row['dtype']}"
            rows.append([row["model"], batch, *("–" if r is None else f"{r:.2f}×" for r in ratios)])
    return table(["", "batch", *STEPS.values(), "without attention"], rows)


def input_pipeline(result: Row) -> str:
    """The rates, the waiting, and the goals."""
    rates, waiting = [], []
    for row in result["rows"]:
        if row["measured"] == "waiting":
            images = f"{row['images']} at {row['size']}×{row['size']}"
            share = f"{row['share']:.1%}"
            waiting.append([images, row["pipeline"], f"{row['step_ms']:.2f}", share])
            continue
        images = f"{row['images']}, {row['bytes'] / 1e3:.0f} KB"
        pipeline = row["pipeline"] + (f" ({row['version']})" if "version" in row else "")
        if "skipped" in row:
            rates.append([images, pipeline, f"skipped: {row['skipped']}", "", ""])
            continue
        filling = f" (filling {row['filling']:,.0f})" if "filling" in row else ""
        spread = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
        rate = f"{row['images_per_second']:,.0f}{filling}"
        rates.append([images, pipeline, rate, spread, f"{row['difference']:.2f}"])
    return "\n\n".join(
        [
            f"Batches of {result['batch']} images of {result['size']}×{result['size']}. "
            "Difference: the mean difference from Grain's pixels, in grey levels.",
            table(["JPEGs", "pipeline", "images/s", "lowest to highest", "difference"], rates),
            table(["training from", "pipeline", "ms per step", "step in place over this"], waiting),
            _verdict_list(result, ".3f"),
        ]
    )


def scaling(result: Row) -> str:
    """The cost of a step, and its communication."""
    costs, exchanged = [], []
    for row in result["rows"]:
        if row["measured"] == "cost":
            low, high = f"{row['min_ms']:.1f}", f"{row['max_ms']:.1f}"
            cells = [row["fixed"], row["devices"], row["batch"], f"{row['median_ms']:.1f}"]
            costs.append([*cells, f"{low} to {high}", f"{row['per_image']:.2f}"])
            continue
        kinds = ", ".join(f"{n} {kind}" for kind, n in row["instructions"].items()) or "none"
        counts = [f"{row['bytes'][p]:,} / {row['by_hand'][p]:,}" for p in row["bytes"]]
        equal = "equal" if row["bytes"] == row["by_hand"] else "**different**"
        exchanged.append([row["devices"], kinds, *counts, equal])
    head = ["fixed batch", "devices", "images", "ms per step", "lowest to highest", "per image"]
    return "\n\n".join(
        [
            f"The step of `attention_cnn` on images of {result['size']}×{result['size']}. Per "
            "image: the time per image, relative to one device; devices that share a CPU's cores "
            "cannot get far below 1, real ones can go down to 1 / devices.",
            table(head, costs),
            "Bytes exchanged in a step, found in the compiled program / counted by hand:",
            table(["devices", "instructions", "statistics", "gradients", "metrics", ""], exchanged),
        ]
    )


def patch_throughput(result: Row) -> str:
    """A row for each way, and its speed relative to plain images."""
    rows = []
    for row in result["rows"]:
        rounds = ", ".join(f"{each:.1f}" for each in row["rounds"])
        rate, ratio = f"{row['patches_per_second']:.1f} ({rounds})", f"{row['of_plain']:.3f}×"
        rows.append([row["way"], rate, ratio, _verdicts(result, row)])
    images, crops, size = result["batch"]
    return "\n\n".join(
        [
            table(["", "patches/s, median (rounds)", "of plain", "goal"], rows),
            f"{result['backbone']}, {result['dtype']}, {images} images of {crops} crops of "
            f"{size}×{size} pixels per step.",
        ]
    )


def parity(result: Row) -> str:
    """Outputs and gradients, and training; what exceeds its bound is bold."""
    bounds = result["bounds"]

    def cells(found: Mapping[str, Row], names: Sequence[str]) -> list[str]:
        texts = [f"{found[name]['difference']:.1e}" for name in names]
        return [
            text if found[name]["difference"] <= bounds[name] else f"**{text}**"
            for name, text in zip(names, texts, strict=True)
        ]

    parts, outputs, trained = [], ("logits", "endpoints", "gradients"), list(bounds)[3:]
    if rows := list(result.get("outputs", {}).values()):
        head = ["model", "size, batch", "endpoints", "parameters"]
        head += ["logits, ordinary", "endpoints, ordinary", *(f"{name}, away" for name in outputs)]
        body = [
            [
                *(row["model"], f"{row['image_size']}, {row['batch']}"),
                *(row["endpoints"], row["parameters"]),
                *cells(row["differences"]["ordinary"], outputs[:2]),
                *cells(row["differences"]["away from kinks"], outputs),
            ]
            for row in rows
        ]
        seeds = " and ".join(map(str, rows[0]["seeds"]))
        parts += [
            table(head, body),
            "Largest difference of any element from Keras, relative to the largest element of "
            f"that tensor, over seeds {seeds}: of the logits, of all endpoints, of the gradients "
            "with respect to the images and every parameter. Ordinary: random weights; away: "
            "random weights away from the kinks of ReLUs, without which gradients are not "
            f"comparable. Bounds: logits and endpoints {bounds['endpoints']}, gradients "
            f"{bounds['gradients']}.",
        ]
    if rows := list(result.get("training", {}).values()):
        body = [
            [
                *(row["model"], f"{row['image_size']}, {row['batch']}"),
                f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}",
                *cells(row["differences"], trained),
            ]
            for row in rows
        ]
        limits = ", ".join(f"{name} {bounds[name]}" for name in trained)
        parts += [
            table(["model", "size, batch", "Keras' loss", *trained], body),
            f"Training: {rows[0]['steps']} steps of Adam(0.01, epsilon 0.1) on one batch, batch "
            "norm in training mode, no dropout, weights away from the kinks; Keras' loss at the "
            "first and the last step. Largest relative difference of the loss at any step, and at "
            "the end of batch norm's moving statistics and of all parameters, relative to the "
            f"largest element. Bounds: {limits}.",
        ]
    return "\n\n".join([*parts, "All in float32."])


def runs(result: Row) -> str:
    """A row for each kind of run, mean and standard deviation over its seeds."""
    scale, digits = (100, 1) if result["percent"] else (1, 3)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    rows = [row for row in result["rows"] if "values" in row]
    columns = list(rows[0]["values"])
    names = list(dict.fromkeys(row["row"] for row in rows))
    times = len(names) == len(rows) and "minutes" in rows[0]
    body = []
    for name in names:
        of_name = [row for row in rows if row["row"] == name]
        first, cells = of_name[0], [name]
        for column in columns:
            found = [row["values"][column] for row in of_name]
            spread = f" ± {number(statistics.stdev(found))}" if len(found) > 1 else ""
            cells.append(number(statistics.mean(found) if spread else found[0]) + spread)
            if "reference" in first:
                cells[-1] += f" ({number(first['reference'].get(column))})"
        body.append([*cells, *([first["epochs"], f"{first['minutes']:.0f}"] if times else [])])
    head = ["", *columns, *(["epochs", "minutes"] if times else [])]
    return "\n\n".join([table(head, body), _of_runs(result), _verdict_list(result, "+.4f")]).strip()


def _of_runs(result: Row) -> str:
    trained = [row for row in result["rows"] if "test_images" in row]
    first = trained[0]
    parts = [f"Test part ({first['test_images']:,} images)."]
    if len({row["row"] for row in trained}) < len(trained):
        seeds = ", ".join(f"{row['seed']} and {row['split_seed']}" for row in trained)
        minutes = ", ".join(f"{row['minutes']:.1f}" for row in trained)
        parts += [
            f"Mean ± standard deviation over runs; seed and seed of the split: {seeds}.",
            f"Training took {minutes} minutes.",
        ]
    device = f"{first['device']}, jax {first['versions']['jax']}."
    return " ".join([*parts, *([result["note"]] if result["note"] else []), device])


#: In the order of the page.
TABLES: dict[str, Callable[[Row], str]] = {
    each.__name__: each
    for each in (
        attention_kernel,
        train_step,
        input_pipeline,
        scaling,
        patch_throughput,
        parity,
        runs,
    )
}
