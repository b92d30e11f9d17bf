"""Data sets by name.

To add one, register a function that returns a `Dataset`::

    @DATASETS.register("mine")
    def mine(config):
        return Dataset(name="mine", class_names=..., table=..., records=...)
"""

from collections.abc import Callable

from absl import logging
from ml_collections import ConfigDict

from jaxattn.data import classes, duplicates, leaks, splits
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid
from jaxattn.registry import Registry

#: Data sets by name: ``config.dataset -> Dataset``.
DATASETS: Registry[Callable[[ConfigDict], Dataset]] = Registry("dataset.name")


@DATASETS.register("synthetic")
def synthetic(config: ConfigDict) -> Dataset:
    """The embedded synthetic images, see `jaxattn.data.synthetic.dataset`."""
    from jaxattn.data.synthetic import dataset

    return dataset.load(config.num_images, config.image_size, config.seed, config.imbalanced)


@DATASETS.register("prepared")
def prepared(config: ConfigDict) -> Dataset:
    """A folder that ``python -m jaxattn.prepare`` wrote, see `jaxattn.data.tfds.reader`."""
    from jaxattn.data.tfds import reader  # TFDS imports slowly

    if not config.data_dir:
        raise invalid(
            "dataset.data_dir", "a folder that python -m jaxattn.prepare wrote", "nothing"
        )
    return reader.load(config.data_dir, config.image_size, config.centre_crop, config.resize)


def load(config: ConfigDict) -> Dataset:
    """The data set of ``config.dataset``, with the classes of ``config.dataset.classes``.

    Raises:
        InputError: Unknown name or class, or the data set cannot be read.
    """
    return classes.select(DATASETS[config.name](config), config.classes)


def load_split(config: ConfigDict) -> tuple[Dataset, splits.Split]:
    """The data set of a config and the rows of each part of its split.

    Warns of a split that leaks, with the share of test images that training knows, and of
    photographs that are in two parts.

    Raises:
        InputError: A field of ``config.dataset`` or ``config.split`` is wrong.
    """
    leak = config.split.leak
    dataset = leaks.copies(load(config.dataset), leak)
    split = splits.make(dataset, **config.split)
    if config.smoke:
        few = config.evaluation.batch_size
        for part in ("validation", "test"):
            split[part] = split[part][:: max(1, len(split[part]) // few)][:few]
    if leak:
        logging.warning("%s", leaks.warning(leak, leaks.measure(dataset, split)))
    else:
        duplicates.warn(dataset, duplicates.count(dataset, split), config.split.duplicates)
    return dataset, split
