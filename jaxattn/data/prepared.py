"""Opens what ``python -m jaxattn.prepare`` wrote: ``prepared.load("data/ham10000", 224)``."""

from jaxattn.data.tfds.reader import load as load
