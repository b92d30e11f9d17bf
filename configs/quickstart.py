"""A small attention CNN on the embedded data: what ``make quickstart`` runs.

    python -m jaxattn.train --config=configs/quickstart.py

Seven synthetic classes at 64x64, 4,000 images; ends in minutes on two CPU cores with more than 90%
balanced accuracy on lesions it has not seen.
"""

from ml_collections import ConfigDict

from jaxattn.config import base


def get_config() -> ConfigDict:
    config = base()
    config.cpu_devices = 2
    config.epochs = 14
    return config
