"""AttnMel-CNN and its baselines (Yan et al. 2019): any row of tables 1 to 3, and HAM10000.

    python tools/prepare_isic.py --year=2017 --source=ISIC2017 --out=data/isic2017
    python -m jaxattn.train --config=configs/yan2019.py:attnmel_lesion \
        --config.dataset.data_dir=data/isic2017 --config.init_from=weights/vgg16_bn

Arguments, joined by commas, at most one of each line:

===============================================  ============================================
attnmel, mel, vgg16_gap, vgg16                   the network: AttnMel-CNN, the default, or a
                                                 baseline
attnmel_lesion, attnmel_dermo, attnmel_bkg       AttnMel-CNN, its maps regularised by the lesion,
                                                 by dermoscopic attributes, by the background
isic2017, isic2016, ham10000                     the data; table 1 is about 2016, 2 and 3 are
                                                 about 2017, the default
melanoma, keratosis                              the task of 2017: against the two other classes
small                                            see below
===============================================  ============================================

HAM10000, the multi-class problem that the paper leaves for later, has all of its seven classes,
balanced by drawing each as often as the others, and melanoma as the one that is watched.

Published: VGG-16 with batch norm and ImageNet's weights (tools/convert_torch.py); centre crop of
0.8 of the shorter side at 256 × 256, of which training sees a random 224 × 224, turned and flipped,
and evaluation the middle; the positive class four times over; focal loss, γ = 2; SGD at 0.01, times
0.1 every 10 epochs; 50 epochs of 2 passes (2017) or 5 (2016), in batches of 32 without the last.
What differs: ISIC 2016 has no validation part, so a tenth of the training part, by class, chooses
the checkpoint (``--config.split.validation``). The centre crop is made when images are decoded: one
prepared folder serves all configs, and no pixel of it is stored that is not the source's.

``small`` is a comparison that two CPU cores can make: a quarter of the width, 64 × 64 of 75 × 75,
5 epochs, a core for each run. It starts from random numbers, so its maps' loss weighs ten times
more, and it has AdamW:

    for row in mel attnmel attnmel_lesion attnmel_bkg vgg16_gap; do
      python -m jaxattn.train --config=configs/yan2019.py:small,$row --workdir=runs/yan2019/$row \
          --config.dataset.data_dir=data/isic2017
      python -m jaxattn.evaluate --workdir=runs/yan2019/$row --split=validation
    done
    python -m benchmarks.runs --kind=yan --name=yan2019 --runs=$(ls -d runs/yan2019/* | paste -sd,)

An epoch of ISIC 2017 is 194 batches. Jaccard indices of the maps, table 3, are in
``evaluation/PART.json`` of a run; of the test part only where it has masks.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base
from jaxattn.errors import invalid

NETWORKS = {
    "attnmel": "attnmelcnn",
    "mel": "melcnn",
    "vgg16_gap": "vgg16_bn_gap",
    "vgg16": "vgg16_bn",
    "attnmel_lesion": "attnmelcnn",
    "attnmel_dermo": "attnmelcnn",
    "attnmel_bkg": "attnmelcnn",
}
TARGETS = {"lesion": "lesion", "dermo": "attributes", "bkg": "background"}
TASKS = {
    "melanoma": ("rest=nevus+seborrheic_keratosis", "melanoma"),
    "keratosis": ("rest=nevus+melanoma", "seborrheic_keratosis"),
}


def get_config(given: str = "") -> ConfigDict:
    row, data, task, small = arguments(
        given, (*NETWORKS,), ("isic2017", "isic2016", "ham10000"), (*TASKS,), ("", "small")
    )
    if (row == "attnmel_dermo" or task != "melanoma") and data != "isic2017":
        raise invalid("configs/yan2019.py", "isic2017 for this row or task", repr(given))
    if row == "vgg16" and small:
        raise invalid("configs/yan2019.py", "small with another network", repr(given))
    config = base()
    _data(config, data, TASKS[task])
    config.dataset.name = "prepared"
    config.dataset.image_size = 256
    config.dataset.centre_crop = 0.8
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, quarter_turns=True)
    config.crops.strategy = "random"
    config.model.name = NETWORKS[row]
    config.dtype = "bfloat16"
    config.loss.focal_gamma = 2.0
    target = TARGETS.get(row.removeprefix("attnmel_"))
    if target:
        config.loss.maps.target = target
        config.loss.maps.weights = ConfigDict({"attention_pool3": 0.001, "attention_pool4": 0.01})
    if row == "vgg16_gap":
        config.evaluation.cam = "backbone/pool5"
    config.optimizer.update(name="sgd", learning_rate=0.01, weight_decay=1e-4, decay="all")
    config.optimizer.update(schedule="step", step_epochs=10, step_factor=0.1, warmup=0.0)
    config.batch_size = 32
    config.sampler.drop_last = True
    config.epochs = 50
    config.best = "auc"
    config.evaluation.overlay.update(alpha=0.4, bilinear=True)
    if small:
        _small(config)
    return config


def _data(config: ConfigDict, data: str, classes: tuple[str, ...]) -> None:
    if data == "isic2016":
        config.normalisation = "isic2016"
    if data == "ham10000":
        config.target_class = "mel"
        config.sampler.name = "equal"
        return
    config.split.strategy = "official"
    config.dataset.classes = classes if data == "isic2017" else ("benign", "malignant")
    config.target_class = config.dataset.classes[1]
    config.sampler.factors = ConfigDict({config.target_class: 4.0})
    config.passes_per_epoch = 2 if data == "isic2017" else 5


def _small(config: ConfigDict) -> None:
    config.dataset.image_size = 75
    config.crops.size = 64
    config.dtype = "float32"
    config.model.backbone_options = ConfigDict({"width": 0.25})
    for name, weight in config.loss.maps.weights.items():
        config.loss.maps.weights[name] = 10 * weight
    config.optimizer.update(name="adamw", learning_rate=0.001, weight_decay=0.05, decay="kernels")
    config.optimizer.update(schedule="cosine", warmup=0.1)
    config.epochs = 5
