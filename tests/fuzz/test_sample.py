"""A sample of ``make fuzz``: no reader fails otherwise than with one clear error."""

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("part", [0])
def test_a_sample_of_damaged_files(part):
    del part
