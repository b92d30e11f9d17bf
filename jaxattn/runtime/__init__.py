"""Where a program runs: devices, compilation, memory."""

from jaxattn.runtime import compilation, devices, memory


def setup(cpu_devices: int) -> None:
    """Prepares a process; to be called once by each entry point, before anything is computed.

    Args:
        cpu_devices: Without an accelerator: devices to split the CPU's cores into.

    Raises:
        InputError: It is not positive.
    """
    memory.keep()
    devices.split_cpu(cpu_devices)
    compilation.use_cache()
