import pytest

from benchmarks import ours, tables


@pytest.mark.parametrize("name", tables.MODELS)
def test_every_model_has_its_published_config(name):
    config = ours.published(name, 4, "float32", 64)
    assert config.model.name == name
    assert config.batch_size == 4
    assert config.optimizer.name == "keras_adam"
