"""Data sets by name."""

from absl import logging
from ml_collections import ConfigDict

from jaxattn.data import classes, leaks, splits
from jaxattn.data.dataset import Dataset
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.data.tfds import reader
from jaxattn.errors import InputError, suggestion

NAMES = ("synthetic", "prepared")


def load(config: ConfigDict) -> Dataset:
    """The data set of ``config.dataset``, its images of ``image_size``.

    Raises:
        InputError: Unknown name or class, or the data set cannot be read.
    """
    # Runs of the time before there was this field have none.
    return classes.select(_load(config), config.get("classes", ()))


def _load(config: ConfigDict) -> Dataset:
    if config.name == "synthetic":
        return synthetic.load(config.num_images, config.image_size, config.seed, config.imbalanced)
    if config.name == "prepared":
        if not config.data_dir:
            raise InputError(
                "dataset.data_dir: nothing given, the folder that a tools/prepare_*.py wrote "
                "wanted: --config.dataset.data_dir=DIR"
            )
        return reader.load(config.data_dir, config.image_size, config.centre_crop)
    raise InputError(f"dataset.name: {config.name!r} given{suggestion(config.name, NAMES)}")


def load_split(config: ConfigDict) -> tuple[Dataset, splits.Split]:
    """The data set of a config and the rows of each part of its split.

    Warns of a split that leaks, with the share of test images that training knows.

    Raises:
        InputError: A field of ``config.dataset`` or ``config.split`` is wrong.
    """
    leak = config.split.leak
    dataset = leaks.copies(load(config.dataset), leak)
    split = splits.make(dataset, **config.split)
    if leak:
        logging.warning("%s", leaks.warning(leak, leaks.measure(dataset, split)))
    return dataset, split
