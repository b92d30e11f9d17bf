"""Import time of the package, in turn with JAX and Flax alone.

    python -m benchmarks.import_time

Prints the median, fastest and slowest of several processes, in seconds.
"""

import statistics
import subprocess
import sys
import time

CASES = {
    "jax, flax": "import jax, flax.linen",
    "jaxattn": "import jax, flax.linen, jaxattn",
    "jaxattn.create_model": "import jax, flax.linen, jaxattn; jaxattn.create_model",
    "jaxattn.train": "import jax, flax.linen, jaxattn.train",
}
REPEATS = 7


def main() -> None:
    """Times every case in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(REPEATS):
        for name, code in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name}: {median:.2f} s ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
