"""Benchmarks: ``python -m benchmarks.NAME`` from the root; results are in ``results/``."""

import os

# Several processes share an accelerator: none may take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
