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

from flax import linen as nn
from jaxtyping import Array

from jaxattn.models.backbones.base import Backbone, Endpoints, dense, flatten, max_pool
from jaxattn.models.layers import ConvReluBN

#: Channels, and kernels, of each block's convolutions.
_BLOCKS = ((64, (3, 1)), (128, (3, 1)), (256, (3, 3, 1)), (512, (3, 3, 1)), (512, (3, 3, 1)))


class DattaVGG16(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1, from 16 × 16 on."""

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        init = nn.initializers.he_normal()
        for i, (features, kernels) in enumerate(_BLOCKS, 1):
            for j, size in enumerate(kernels, 1):
                name = f"block{i}_conv{j}"
                conv = ConvReluBN(
                    features, (size, size), kernel_init=init, dtype=self.dtype, name=name
                )
                x = endpoint(name, conv(x, train=train))
            size = 4 if i == len(_BLOCKS) else 2
            x = endpoint(f"block{i}_pool", max_pool(x, size, size))
        if self.num_classes is not None:
            x = endpoint("flatten", flatten(x))
            x = endpoint("fc1", nn.relu(dense(x, "fc1", 4096, self.dtype)))
            x = endpoint("fc2", nn.relu(dense(x, "fc2", 4096, self.dtype)))
            endpoint("logits", dense(x, "logits", self.num_classes))
