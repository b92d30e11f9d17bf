"""What is said when the description of several processes is incomplete."""

import pytest

from jaxattn.errors import InputError
from jaxattn.runtime import distributed

ADDRESS, COUNT, INDEX = distributed.VARIABLES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({ADDRESS: "host:1", COUNT: "2"}, "JAX_PROCESS_ID: expected a value"),
        ({COUNT: "2"}, "JAX_COORDINATOR_ADDRESS: expected a value"),
        ({ADDRESS: "host", COUNT: "2", INDEX: "0"}, "HOST:PORT of process 0, got 'host'"),
        ({ADDRESS: "host:1", COUNT: "two", INDEX: "0"}, "JAX_NUM_PROCESSES: expected a whole"),
        ({ADDRESS: "host:1", COUNT: "2", INDEX: "2"}, "JAX_PROCESS_ID: expected 0 to 1"),
        ({}, "--distributed: expected Slurm, Open MPI, Kubernetes, Cloud TPU, or JAX_COORD"),
    ],
)
def test_a_missing_or_wrong_variable_is_one_line(monkeypatch, given, message):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error, distributed.joined(True):
        pytest.fail("joined")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_process_joins_nothing(monkeypatch):
    monkeypatch.setenv(COUNT, "2")
    with distributed.joined(False):
        pass
