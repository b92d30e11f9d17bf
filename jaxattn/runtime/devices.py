"""One mesh over the devices of all hosts: the state on each device, the batch split over them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn.errors import invalid


def split_cpu(devices: int) -> None:
    """Splits the CPU's cores into several devices; to be called before anything is computed.

    XLA runs much of a small network on one core. With one device per core, each with its share of
    the batch, the same step uses all cores. Does nothing if there is an accelerator.

    Raises:
        InputError: ``devices`` is not positive.
    """
    if devices < 1:
        raise invalid("cpu_devices", "at least 1", devices)
    jax.config.update("jax_num_cpu_devices", devices)


def mesh() -> Mesh:
    """A mesh ``('data',)`` over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def like(tree: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and the replicated sharding of a tree, to restore a checkpoint with."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def check_batch_size(field: str, batch_size: int) -> None:
    """Raises InputError if a batch cannot be split evenly over the devices."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise invalid(field, f"a positive multiple of the {devices} devices", batch_size)


def put_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's part of the global batch on its devices."""
    sharding = batched(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays, which must be the same on every host, on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )
