"""One mesh over all devices of all hosts: the state on each of them, the batch spread over them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn.errors import InputError
from jaxattn.runtime import memory


def split_cpu(devices: int) -> None:
    """Makes several devices of a CPU's cores; to be called before anything is computed.

    XLA computes much of a small network on one core. As one device per core, each with its share
    of the batch, the same step keeps all of them busy. Does nothing where there is an accelerator,
    but for `jaxattn.runtime.memory.keep`.

    Raises:
        InputError: Not a positive number.
    """
    if devices < 1:
        raise InputError(f"cpu_devices: {devices} given, 1 or more wanted")
    memory.keep()
    jax.config.update("jax_num_cpu_devices", devices)


def mesh() -> Mesh:
    """A mesh ``('data',)`` over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def like(tree: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and the replicated sharding of a tree, to restore a checkpoint with."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def check_batch_size(field: str, batch_size: int) -> None:
    """Raises InputError where a batch cannot be spread evenly over the devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise InputError(
            f"{field}: {batch_size} given, a multiple of the {jax.device_count()} devices wanted"
        )


def put_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on its devices, as part of the global batch."""
    sharding = batched(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays, the same on every host, on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )
