"""Where a program runs: devices, compilation, memory."""

import contextlib
import os
import resource

from jaxattn.runtime import compilation, devices, memory

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def setup(cpu_devices: int, deterministic: bool = False) -> None:
    """Prepares a process; to be called once by each entry point, before anything is computed.

    Args:
        cpu_devices: Without an accelerator: devices to split the CPU's cores into.
        deterministic: Whether to leave out operations that add in any order, on GPUs; those of
            CPUs and TPUs do not.

    Raises:
        InputError: It is not positive.
    """
    if deterministic and not is_deterministic():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # a checkpoint opens many files at once
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    memory.keep()
    devices.split_cpu(cpu_devices)
    compilation.use_cache()


def is_deterministic() -> bool:
    """Whether this process was set up with ``deterministic``."""
    return _DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
