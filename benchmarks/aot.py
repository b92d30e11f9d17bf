"""The training step compiled ahead of time for GPUs and TPUs, on a machine that has neither.

``benchmarks/README.md`` says what is read off the programs.

    .venv/aot/bin/python -m benchmarks.aot [--models=resnet50,irv2_sa] [--targets=h100,v5e]
"""

import collections
import itertools
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from benchmarks import hlo, measure, ours, tables
from jaxattn import config as configs
from jaxattn import train
from jaxattn.data import packed
from jaxattn.data.dataset import height_width
from jaxattn.errors import invalid, unknown
from jaxattn.runtime import devices
from jaxattn.train import Training
from references import flax_resnet  # noqa: F401 registers the peers

#: What the compilers ask for where there is no device.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 64: "8x8", 256: "16x16"}
CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 64: "4x4x4", 256: "4x8x8"}


class Target(NamedTuple):
    """A device: peaks of its data sheet, and a TPU's topologies by the number of chips."""

    bandwidth: float  # bytes per second
    flops: Mapping[str, float]  # per second, of dense products by type of operand
    topologies: Mapping[int, str] = {}


TARGETS = {
    "h100": Target(3.35e12, {"bf16": 989e12, "f32": 495e12}),
    "h200": Target(4.8e12, {"bf16": 989e12, "f32": 495e12}),
    "a100": Target(2.04e12, {"bf16": 312e12, "f32": 156e12}),
    "v5e": Target(0.82e12, {"bf16": 197e12, "f32": 197e12}, FLAT),
    "v5p": Target(2.77e12, {"bf16": 459e12, "f32": 459e12}, CUBES),
    "v6e": Target(1.64e12, {"bf16": 918e12, "f32": 918e12}, FLAT),
}


def mesh(target: str, count: int) -> Mesh:
    """A mesh of devices that do not exist.

    Raises:
        InputError: There is no such target or topology, or no compiler for it.
    """
    if target not in TARGETS:
        raise unknown("--targets", target, TARGETS)
    slices = TARGETS[target].topologies
    if slices and count not in slices:
        raise invalid("--devices", f"one of {', '.join(map(str, slices))} for {target}", count)
    os.environ.update({name: os.environ.get(name, to) for name, to in ENVIRONMENT.items()})
    options: dict[str, Any]
    if slices:
        options = {"platform": "tpu", "topology_name": f"{target}:{slices[count]}"}
        if count == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
    else:
        description = Path(__file__).parent / "targets" / f"{target}.txtpb"
        nodes = -(-count // 8)
        options = {"platform": "cuda", "topology": f"1x{nodes}x{count // nodes}"}
        options["target_config"] = description.read_text(encoding="utf-8")
    try:
        found = topologies.get_topology_desc(**options).devices
    except Exception as error:  # the plugins raise what they like
        line = str(error).splitlines()[0]
        raise invalid("--targets", "targets whose compiler is installed", line) from error
    return Mesh(np.array(found), ("data",), axis_types=(AxisType.Auto,))


def config_of(model: str, batch: int, dtype: str, size: int) -> ConfigDict:
    """The config of a published model, of any registered one, or a config's by its name."""
    if model in tables.MODELS:
        return ours.published(model, batch, dtype, size or 224)
    if ":" in model or (Path("configs") / f"{model}.py").is_file():
        config = configs.load(model.replace("+", ","))
    else:
        config = configs.base()
        config.model.name = model
    config.dataset.update(name="synthetic", num_images=1400)
    config.split.update(strategy="lesion", leak="")
    config.batch_size, config.dtype = batch, dtype
    if size:
        config.dataset.image_size = size
    return config


def compile_step(run: Training, resident: int = 0) -> tuple[Any, float]:
    """Compiles a training step for its mesh; returns the processor seconds that took as well.

    Args:
        run: Made for a mesh of `mesh`.
        resident: Images that stay on the device; 0 for images that come with the batch.
    """
    same, split = devices.replicated(run.mesh), devices.batched(run.mesh)
    count, shape = run.config.batch_size, height_width(run.config.dataset.image_size)

    def array(sharding: Any, dtype: Any, *lengths: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=sharding)

    batch: dict[str, Any] = {name: array(split, jnp.int32, count) for name in ("row", "label")}
    masks = bool(run.config.loss.maps.weights)
    pixels = {"image": (*shape, 3)} | ({"mask": shape} if masks else {})
    data: dict[str, Any] = {}
    if masks:
        batch["has_mask"] = array(split, jnp.bool_, count)
    for name, of_one in pixels.items():
        if not resident:
            batch[name] = array(split, jnp.uint8, count, *of_one)
        elif run.mesh.devices.flat[0].platform in packed.PLATFORMS:
            rows = array(same, jnp.uint8, resident, packed.rows_of(of_one), packed.WIDTH)
            data[name] = packed.Packed(rows, of_one)
        else:
            data[name] = array(same, jnp.uint8, resident, *of_one)
    since = time.process_time()
    jitted: Any = run.step
    compiled = jitted.lower(run.like, data, batch).compile()
    return compiled, time.process_time() - since


def facts(compiled: Any, target: str, images: int) -> dict[str, Any]:
    """What a compiled program tells: see the module.

    Args:
        compiled: The program.
        target: One of ``TARGETS``.
        images: In a batch of one device.
    """
    found, device = hlo.kernels(compiled.as_text()), TARGETS[target]
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    seconds = [each.runs * _seconds(each, device) for each in found]
    moved = sum(each.runs * each.bytes for each in found)
    flops = sum(each.runs * each.flops for each in found)
    exchanged = hlo.collectives(found)
    largest = sorted(zip(seconds, found, strict=True), key=lambda pair: -pair[0])[:20]
    matrices = [each for each in found if each.flops]

    of_pixels = sum(each.runs * each.bytes for each in found if each.mostly("preprocess"))
    return {
        "memory": memory.peak_memory_in_bytes,
        "bytes": moved,
        "reported_bytes": cost.get("bytes accessed"),
        "flops": flops,
        "kernels": hlo.by_kind(found),
        "float32_bytes": sum(each.runs * each.float32 for each in found),
        "products": _sums((f"{k.kind} {k.dtype}", k.runs * k.flops) for k in matrices),
        "layouts": _sums((each.layout, each.runs) for each in matrices if each.layout),
        "preprocess_share": of_pixels / moved,
        "collectives": {
            "count": sum(each.runs for each in exchanged),
            "arrays": sum(len(each.arrays) for each in exchanged),
            "bytes": sum(array.bytes for each in exchanged for array in each.arrays),
            "bfloat16": sum(a.bytes for e in exchanged for a in e.arrays if a.dtype == "bf16"),
        },
        "estimate": {
            "seconds": sum(seconds),
            "images_per_second": images / sum(seconds),
            "mfu": flops / sum(seconds) / device.flops["bf16"],
        },
        "largest": [
            {
                "kind": each.kind,
                "source": each.source[-90:],
                "bytes": each.runs * each.bytes,
                "flops": each.runs * each.flops,
                "share": taken / sum(seconds),
            }
            for taken, each in largest
        ],
    }


def _seconds(kernel: hlo.Kernel, device: Target) -> float:
    peak = device.flops["f32" if kernel.dtype == "f32" else "bf16"]
    return max(kernel.bytes / device.bandwidth, kernel.flops / peak)


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = collections.defaultdict(float)
    for name, value in pairs:
        total[name] += value
    return dict(total)


def run(
    models: tuple[str, ...] = ("resnet50", "flax_resnet50"),
    targets: tuple[str, ...] = ("h100", "v5e"),
    batch: int = 256,
    dtype: str = "bfloat16",
    devices: int = 1,
    size: int = 0,
    resident: int = 0,
    remat: str = "none",
    accumulate: int = 1,
    groups: int = 1,
    programs: str = "",
) -> None:
    """Compiles every model for every target and writes the result.

    Args:
        models: Published models, registered ones, or configs with their arguments: a+b for a,b.
        targets: Of h100, h200, a100, v5e, v5p and v6e.
        batch: Images on each device.
        dtype: float32 or bfloat16.
        devices: How many; on a TPU 1, 4, 8, 64 or 256 chips.
        size: Height and width of the images; 0 for the model's.
        resident: Images that stay on the device; 0 for images that come with the batch.
        remat: What the backward pass recomputes: none or blocks.
        accumulate: Parts of a batch that run one after the other.
        groups: Parts of a batch that have batch statistics of their own.
        programs: Folder to write the optimised programs to.
    """
    rows: list[dict[str, Any]] = []
    given = {"batch": batch, "dtype": dtype, "devices": devices, "size": size, "resident": resident}
    given |= {"remat": remat, "accumulate": accumulate, "groups": groups}
    for model, target in itertools.product(models, targets):
        case = {"model": model, "target": target, **given}
        config = config_of(model, batch * devices, dtype, size)
        config.update(remat=remat, accumulate_steps=accumulate, batch_norm_groups=groups)
        compiled, seconds = compile_step(train.setup(config, mesh(target, devices)), resident)
        if programs:
            name = "_".join(str(each) for each in case.values())
            Path(programs, f"{name}.txt").write_text(compiled.as_text(), encoding="utf-8")
        rows.append(case | {"compile": seconds} | facts(compiled, target, batch))
        result = measure.write("aot", rows, case=[*case])
        print(tables.aot(result | {"rows": rows[-1:]}), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    measure.command_line(run)
