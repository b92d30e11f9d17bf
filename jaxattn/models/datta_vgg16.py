"""The VGG-16 that Datta et al. 2021 (arXiv:2105.03358) built by hand.

It differs from Simonyan and Zisserman's (arXiv:1409.1556): batch norm follows the ReLU of every
convolution, the last convolution of a block is 1×1, and the last pool is 4×4 of stride 4. Kernels
of convolutions start from He's normal distribution; nothing was pre-trained.

Endpoints, in order, with their shapes for images of 224 × 224:

==============================  =============  =========================
``block1_conv1``, ``…_conv2``   224 224 64     3×3 and 1×1
``block1_pool``                 112 112 64
``block2_conv1``, ``…_conv2``   112 112 128    3×3 and 1×1
``block2_pool``                 56 56 128
``block3_conv1`` … ``_conv3``   56 56 256      3×3, 3×3 and 1×1
``block3_pool``                 28 28 256
``block4_conv1`` … ``_conv3``   28 28 512      3×3, 3×3 and 1×1
``block4_pool``                 14 14 512
``block5_conv1`` … ``_conv3``   14 14 512      3×3, 3×3 and 1×1
``block5_pool``                 4 4 512        4×4, stride 4
``flatten``                     8192           only with classes
``fc1``, ``fc2``                4096           only with classes
``logits``                      classes        only with classes
==============================  =============  =========================

With Soft-Attention (section 3.3.4) the attention block follows ``block4_conv3`` and takes the place
of ``block4_pool``. The network can also stop inside a convolution, at ``block4_conv3/conv`` and
``block4_conv3/relu``.
"""

import functools

from flax import linen as nn

from jaxattn.models.backbone import Backbone, Stage, dense, flatten, max_pool, of_module
from jaxattn.models.layers import ConvReluBN

#: Channels, and kernels, of each block's convolutions.
_BLOCKS = ((64, (3, 1)), (128, (3, 1)), (256, (3, 3, 1)), (512, (3, 3, 1)), (512, (3, 3, 1)))


class DattaVGG16(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1, from 16 × 16 on."""

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = {}
        for i, (features, kernels) in enumerate(_BLOCKS, 1):
            for j, size in enumerate(kernels, 1):
                name = f"block{i}_conv{j}"
                conv = functools.partial(
                    ConvReluBN,
                    features,
                    (size, size),
                    kernel_init=nn.initializers.he_normal(),
                    dtype=self.dtype,
                    name=name,
                )
                stages[name] = of_module(conv, ("conv", "relu"))
            stages[f"block{i}_pool"] = max_pool(4, 4) if i == len(_BLOCKS) else max_pool(2, 2)
        if self.num_classes is not None:
            stages["flatten"] = Stage(flatten)
            stages["fc1"] = dense("fc1", 4096, self.dtype, activate=True)
            stages["fc2"] = dense("fc2", 4096, self.dtype, activate=True)
            stages["logits"] = dense("logits", self.num_classes)
        return stages
