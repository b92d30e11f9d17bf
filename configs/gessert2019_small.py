"""The four input strategies of Gessert et al. 2019 with a small network, each on one CPU core.

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    for strategy in downsampling single multi initial; do
        python -m jaxattn.train --config=configs/gessert2019_small.py:$strategy \
            --config.dataset.data_dir=data/ham10000 --workdir=runs/gessert2019_small/$strategy
    done
    python -m benchmarks.runs --kind=gessert --name=gessert2019_small \
        --runs=$(ls -d runs/gessert2019_small/* | paste -sd,)

One of three folds by lesion. Images of 256×256 stand for the paper's 450×600 and crops of 112×112,
as large a share of the height, for its 224×224; the network is a DenseNet of eight layers, from
scratch. Arguments: downsampling, single, multi, gru, initial, end or dual; the last four see nine
crops of each image, and have two epochs instead of five.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base

ATTENTION = {"initial": ("initial",), "end": ("end",), "dual": ("initial", "end")}
STRATEGIES = ("initial", "end", "dual", "downsampling", "single", "multi", "gru")


def get_config(given: str = "") -> ConfigDict:
    (strategy,) = arguments(given, STRATEGIES)
    ordered = strategy == "gru" or strategy in ATTENTION
    config = base()
    config.dataset.name = "prepared"
    config.dataset.image_size = 112 if strategy == "downsampling" else 256
    config.split.strategy = "folds"
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, brightness=32 / 255, saturation=0.5)
    config.crops.strategy = "ordered" if ordered else strategy
    config.crops.size = 112
    config.model = ConfigDict({"name": "gessert2019", "backbone": "densenet_small"})
    if strategy in ATTENTION:
        config.model.attention = ATTENTION[strategy]
    if strategy == "gru":
        config.model.update(head="gru", units=128)
    config.loss.class_weight_exponent = 1.0
    config.loss.reduction = "weighted_mean"
    config.optimizer.update(learning_rate=0.001, weight_decay=0.0)
    config.batch_size = 8 if ordered else 32
    config.epochs = 2 if ordered else 5
    config.evaluation.batch_size = 20
    return config
