"""What is compared: each module answers in a process of its own, see `benchmarks.process`."""
