"""Where a program runs: devices, compilation, memory."""
