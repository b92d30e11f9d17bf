"""Inception-ResNet-v2 with Soft-Attention on HAM10000 (Datta et al. 2021, table 1, IRv2+SA).

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/ham_irv2.py --config.dataset.data_dir=data/ham10000

This is ``datta2021.py:irv2_sa`` split by lesion: all images of a lesion are in one part. Arguments,
joined by commas: ``datta`` (the paper's 85/15 split), ``baseline`` (without attention), ``paper``
(the attention layer as the paper describes it: 3×3 over all channels, after the last
Inception-ResNet-C block, with a learnable scale; pixels / 255).

An epoch is 919 batches of 16; 150 at most. In the notebook one took 149 s on an unnamed Colab GPU.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, load


def get_config(given: str = "") -> ConfigDict:
    variant, datta = arguments(given, ("", "baseline", "paper"), ("", "datta"))
    config = load("datta2021:irv2" if variant == "baseline" else "datta2021:irv2_sa")
    config.split.strategy = datta or "lesion"
    if variant == "paper":
        config.model.name = "irv2_sa_paper"
    return config
