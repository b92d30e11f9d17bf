"""Every row of table 1 of Datta et al. 2021 (arXiv:2105.03358), on HAM10000.

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/datta2021.py:irv2_sa \
        --config.dataset.data_dir=data/ham10000 --config.init_from=weights/irv2

Arguments, joined by commas:

* the network: ``irv2``, ``densenet201``, ``resnet50``, ``resnet34`` or ``vgg16``, and the same with
  ``_sa`` for Soft-Attention; ``irv2_sa`` is the default;
* ``test=0.15``, the default, ``test=0.2`` or ``test=0.3``: the share of the test part;
* ``paper``: what the paper describes and the released notebooks do not do: its attention layer at
  its place, pixels / 255, no class weights;
* ``leaky``: the best checkpoint and the end are chosen on the test part, as in the notebooks;
  without it, on a validation part taken from the training part.

Images are resized by nearest neighbour, Keras' default, as in the notebooks; converted published
weights expect such pixels. Activations are bfloat16; ``--config.dtype=float32`` is as published.
Grad-CAM of ``irv2`` and ``irv2_sa`` stands beside Soft-Attention in the report, as in the paper's
figure 9.

Optimizer, batches, epochs, early stopping and class weights are taken from each network's notebook.
Augmentation is drawn for each image in each step, not once for a folder of 51,699 copies. The
networks of keras.applications start from ImageNet weights (``tools/convert_keras.py``);
``resnet34`` and ``vgg16`` start from random numbers.

An epoch is 919 batches of 10 or 16. In the notebooks one took 40 s (``resnet34_sa``) to 149 s
(``irv2_sa``) on an unnamed Colab GPU; training stopped after 58 to 152 epochs.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base

#: Batch size, epochs and patience of each network's notebook.
NETWORKS = {
    "irv2_sa": (16, 150, 30),
    "irv2": (16, 150, 30),
    "densenet201_sa": (10, 150, 35),
    "densenet201": (10, 150, 35),
    "resnet50_sa": (10, 300, 40),
    "resnet50": (10, 300, 40),
    "resnet34_sa": (10, 300, 65),
    "resnet34": (10, 300, 65),
    "vgg16_sa": (16, 300, 65),
    "vgg16": (10, 300, 65),
}
#: Batches that the notebooks count as an epoch: a tenth of the training images before augmentation.
STEPS = {"test=0.15": 919, "test=0.2": 892, "test=0.3": 836}


def get_config(given: str = "") -> ConfigDict:
    name, test, paper, leaky = arguments(
        given, (*NETWORKS,), (*STEPS,), ("", "paper"), ("", "leaky")
    )
    config = base()
    config.dataset.name = "prepared"
    config.split.strategy = "datta"
    config.split.test = float(test.removeprefix("test="))
    config.split.leak = "select_on_test" if leaky else ""
    config.sampler.name = "equal"
    config.sampler.per_class = 8000
    config.model.name = f"{name}_paper" if paper and name.endswith("_sa") else name
    config.normalisation = "unit" if paper else ""
    config.dataset.resize = "nearest"
    if name in ("irv2", "irv2_sa") and not paper:
        config.evaluation.grad_cam = (
            "backbone/block8_9/branch0/conv1/conv"  # the notebook's conv2d_195
        )
    config.dtype = "bfloat16"
    if not paper:
        config.loss.class_weights.mel = 5.0
    config.optimizer.name = "keras_adam"
    config.optimizer.learning_rate = 0.01
    config.optimizer.eps = 0.1
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 0.0
    batch_size, config.epochs, config.early_stopping.patience = NETWORKS[name]
    config.batch_size = batch_size if test == "test=0.15" else 10
    config.steps_per_epoch = STEPS[test]
    config.best = "accuracy"
    config.early_stopping.metric = "loss"
    config.early_stopping.min_delta = 0.001
    return config
