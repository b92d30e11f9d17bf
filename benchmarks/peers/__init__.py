"""What is compared: each module's ``prepare`` makes what is timed, see `benchmarks.process`."""
