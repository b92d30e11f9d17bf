"""Patch-based attention and diagnosis-guided loss weighting (Gessert et al. 2019), any table's row.

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.cross_validate --config=configs/gessert2019.py:densenet121,dual \
        --config.dataset.data_dir=data/ham10000 --config.init_from=weights/densenet121

runs the three folds of one row and prints it as the paper does; ``python -m jaxattn.train`` and
``--config.split.fold=0`` run one. The weights are ImageNet's, see tools/convert_torch.py.
Arguments, joined by commas, at most one of each line, and the tables they are of:

=======================================  ==========================================  =========
densenet121, inception_v3, se_resnext50  the network                                 all
downsampling, single, multi, gru,        the input strategy, or how crops are        II
initial, end, dual                       joined
crops4, crops5, crops9, crops16          NC                                          III
spc                                      derm7pt (tools/prepare_derm7pt.py)          IV
weighted, none, oversampling, balanced,  balancing; for ``diagnosis`` see below      V
diagnosis, diagnosis_nevi,
diagnosis_executed
k0.5, k0.75, k1, k1.25, k1.5             the exponent of loss weighting              VI
released                                 validated and evaluated as their code does  II
leaky                                    folds by image, which nobody published
=======================================  ==========================================  =========

Without any: densenet121, multi (which tables V and VI are about), crops9, weighted, k1.

Folds keep lesions together, as the authors' do;
``--config.split.file=gessert2019_ham_split.npz`` takes theirs. ``leaky`` cuts folds by image, which
is marked wherever results are shown. derm7pt has no folds: its official parts, with the validation
part in training, are one run of ``python -m jaxattn.train``.

Diagnosis-guided weighting has three forms: ``diagnosis`` is the paper's, a factor by how the
diagnosis was confirmed for benign classes; ``diagnosis_nevi`` what a comment in the released code
says, for nevi alone; ``diagnosis_executed`` what that code does, for every class, since its test
reads a variable that an earlier loop left behind. The mean factors are then 4.0 for mel, bcc and
akiec, 3.2 for bkl, 2.7 for nv and 2.4 for df and vasc.

Single-crop is evaluated on the centre with 85% of each side, as the paper says; ``released`` takes
the centre of 336 pixels, as the code does. Both are resized to 224. ``released`` also validates
after the first and every fifth epoch alone.

Densenet121 has its last ReLU where torchvision's own forward pass is used (downsampling, single,
multi), and none before the pooling where crops are joined (attention, gru), as in their code.

Their evaluation takes the last checkpoint (``jaxattn evaluate --checkpoint=latest``); ours the best
on validation. Activations are bfloat16 here; ``--config.dtype=float32`` is as published.

What was published: batches of 5 images of 5 or 9 crops; Adam at 1.25e-5 · 5/3 and patch dropout .1
for Inception-v3 with 5 crops, 1.25e-5 and .2 for DenseNet with 9; 50 epochs, the rate halved at
the start of epochs 20, 30, 40 and 50. Of the other rows nothing is known: 4 crops have what 5 have,
all else what 9 have, and without ordered crops a batch has 45 images, as many crops as the others'
batches. An epoch of HAM10000 has about 5,000 images, for the ordered strategies 45,000 crops.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base

NETWORKS = {
    "densenet121": "torch_densenet121",
    "inception_v3": "torch_inception_v3",
    "se_resnext50": "torch_se_resnext50_cadene",
}
ATTENTION = {"initial": ("initial",), "end": ("end",), "dual": ("initial", "end")}
STRATEGIES = ("multi", "downsampling", "single", "gru", *ATTENTION)
#: Classes whose images are weighted by how the diagnosis was confirmed.
DIAGNOSIS = {
    "diagnosis": ("bkl", "df", "nv", "vasc"),
    "diagnosis_nevi": ("nv",),
    "diagnosis_executed": ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
}
BALANCING = ("weighted", "none", "oversampling", "balanced", *DIAGNOSIS)
EXPONENTS = ("k1", "k0.5", "k0.75", "k1.25", "k1.5")
COUNTS = ("crops9", "crops4", "crops5", "crops16")


def get_config(given: str = "") -> ConfigDict:
    network, strategy, crops, balancing, exponent, spc, released, leaky = arguments(
        given,
        tuple(NETWORKS),
        STRATEGIES,
        COUNTS,
        BALANCING,
        EXPONENTS,
        ("", "spc"),
        ("", "released"),
        ("", "leaky"),
    )
    config = base()
    config.dataset.name = "prepared"
    config.dataset.image_size = (450, 600)
    if spc:
        config.split.strategy = "official"
        config.split.validation = 0.0
    else:
        config.split.strategy = "folds"
        config.split.leak = "gessert" if leaky else ""
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, brightness=32 / 255, saturation=0.5)
    config.dtype = "bfloat16"
    config.model = ConfigDict({"name": "gessert2019", "backbone": NETWORKS[network]})
    if network == "densenet121" and (strategy == "gru" or strategy in ATTENTION):
        config.model.endpoint = "bn"  # no ReLU before the pooling
    if released:
        config.validate_every = 5
    if released and strategy == "single":
        config.crops.centre = 336.0
    _see(config, strategy, int(crops.removeprefix("crops")))
    _balance(config, balancing, float(exponent.removeprefix("k")))
    config.optimizer.update(name="adamw", weight_decay=0.0, schedule="step", warmup=0.0)
    config.optimizer.update(step_factor=0.5, step_epochs=10, step_start=19)
    config.optimizer.learning_rate = 1.25e-5 * (1 if config.crops.count >= 9 else 5 / 3)
    config.epochs = 50
    config.evaluation.batch_size = 20
    return config


def _see(config: ConfigDict, strategy: str, count: int) -> None:
    """What the network sees of an image, and how crops are joined."""
    ordered = strategy == "gru" or strategy in ATTENTION
    config.crops.strategy = "ordered" if ordered else strategy
    config.crops.count = count
    config.crops.dropout = 0.1 if count < 9 else 0.2
    if strategy in ATTENTION:
        config.model.attention = ATTENTION[strategy]
    if strategy == "gru":
        config.model.head = "gru"
    if strategy == "downsampling":
        config.dataset.image_size = 0  # decoded at the network's size: fewer bytes to keep
    config.batch_size = 5 if ordered else 45


def _balance(config: ConfigDict, balancing: str, exponent: float) -> None:
    """Balancing as of section II-F; the baseline is loss weighting."""
    samplers = {"oversampling": "oversample", "balanced": "balanced_batches"}
    if balancing in samplers:
        config.sampler.name = samplers[balancing]
    elif balancing != "none":
        config.loss.class_weight_exponent = exponent
        config.loss.reduction = "weighted_mean"
    if balancing in DIAGNOSIS:
        config.loss.diagnosis_guided = DIAGNOSIS[balancing]
        config.loss.reduction = "mean"
