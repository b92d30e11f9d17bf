"""A sample of ``make fuzz``: every reader refuses damaged files with one clear error."""

import concurrent.futures

import pytest

from tests.fuzz import run
from tests.fuzz.targets import TARGETS

#: Inputs of each reader.
EACH = 20


def test_a_sample_of_damaged_files():
    pytest.importorskip("torch", reason="it writes some of the files")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: run.run(name, range(EACH)), TARGETS))
    for name, result in zip(TARGETS, results, strict=True):
        assert not result.faults, name
        assert sum(result.counts.values()) == EACH
        assert result.counts["refused"], name
