"""The training step compiled ahead of time for GPUs and TPUs, on a machine that has neither.

``benchmarks/README.md`` says what is measured and how.

    .venv/aot/bin/python -m benchmarks.aot [--models=resnet50,irv2_sa] [--targets=h100,v5e]
"""

import collections
import itertools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from benchmarks import hlo, measure, ours, tables
from jaxattn import config as configs
from jaxattn import train
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
#: Of a TPU, the topologies by the number of chips.
TARGETS: dict[str, dict[int, str]] = {
    **{"h100": {}, "h200": {}, "a100": {}},
    **{"v5e": FLAT, "v5p": CUBES, "v6e": FLAT},
}


def mesh(target: str, count: int) -> Mesh:
    """A mesh of devices that do not exist.

    Raises:
        InputError: There is no such target or topology, or no compiler for it.
    """
    if target not in TARGETS:
        raise unknown("--targets", target, TARGETS)
    slices = TARGETS[target]
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


def config_of(model: str, batch: int, dtype: str) -> ConfigDict:
    """The config of a published model, or of any registered one."""
    if model in tables.MODELS:
        return ours.published(model, batch, dtype, 224)
    config = configs.base()
    config.model.name = model
    config.dataset.update(name="synthetic", num_images=1400)
    config.batch_size, config.dtype = batch, dtype
    return config


def compile_step(run: Training) -> Any:
    """Compiles a training step, with images that come with the batch, for a mesh of `mesh`."""
    split, count = devices.batched(run.mesh), run.config.batch_size

    def array(dtype: Any, *lengths: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=split)

    batch = {name: array(jnp.int32, count) for name in ("row", "label")}
    pixels = (*height_width(run.config.dataset.image_size), 3)
    batch["image"] = array(jnp.uint8, count, *pixels)
    jitted: Any = run.step
    return jitted.lower(run.like, {}, batch).compile()


def facts(compiled: Any) -> dict[str, Any]:
    """What a compiled program tells: its memory, and what its kernels move and compute."""
    found = hlo.kernels(compiled.as_text())
    moved = sum(each.runs * each.bytes for each in found)
    of_pixels = sum(each.runs * each.bytes for each in found if each.mostly("preprocess"))
    exchanged = hlo.collectives(found)
    products: dict[str, float] = collections.defaultdict(float)
    for each in found:
        if each.flops:
            products[f"{each.kind} {each.dtype}"] += each.runs * each.flops
    return {
        "memory": compiled.memory_analysis().peak_memory_in_bytes,
        "bytes": moved,
        "flops": sum(products.values()),
        "kernels": hlo.by_kind(found),
        "float32_bytes": sum(each.runs * each.float32 for each in found),
        "products": products,
        "preprocess_share": of_pixels / moved,
        "collectives": {
            "count": sum(each.runs for each in exchanged),
            "bytes": sum(array.bytes for each in exchanged for array in each.arrays),
        },
    }


def run(
    models: tuple[str, ...] = ("resnet50", "flax_resnet50"),
    targets: tuple[str, ...] = ("h100", "v5e"),
    batch: int = 256,
    dtype: str = "bfloat16",
    devices: int = 1,
) -> None:
    """Compiles every model for every target and writes the result.

    Args:
        models: Published models, or registered ones.
        targets: Of h100, h200, a100, v5e, v5p and v6e.
        batch: Images on each device.
        dtype: float32 or bfloat16.
        devices: How many; on a TPU 1, 4, 8, 64 or 256 chips.
    """
    rows: list[dict[str, Any]] = []
    for model, target in itertools.product(models, targets):
        built = train.setup(config_of(model, batch * devices, dtype), mesh(target, devices))
        case = {"model": model, "target": target, "batch": batch, "dtype": dtype}
        case["devices"] = devices
        rows.append(case | facts(compile_step(built)))
        result = measure.write("aot", rows, case=[*case])
        print(tables.aot(result | {"rows": rows[-1:]}), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    measure.command_line(run)
