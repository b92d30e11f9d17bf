"""Class activation maps: CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017).

Both weight the channels of a layer by their effect on a class's logit. They explain any trained
network, with or without attention.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.errors import unknown
from jaxattn.state import Variables


@dataclasses.dataclass(frozen=True)
class ClassActivation:
    """The class activation map of a layer.

    ``Σ_c w_c A_c`` over the layer's channels; ``w_c`` is the mean over positions of the logit's
    derivative with respect to ``A_c`` (Grad-CAM, equations 1 and 2). Without ``rectify``, at a
    layer that only global average pooling and a dense layer follow (VGG-16-GAP), it is CAM divided
    by the number of positions.

    Attributes:
        layer: Path of a module that returns features ``(B, h, w, C)``: ``backbone/pool5``.
        target: Index of the class to explain; None for the predicted class.
        rectify: Set negative evidence to 0, as Grad-CAM does.
    """

    layer: str
    target: int | None = None
    rectify: bool = True

    def __call__(
        self, model: nn.Module, variables: Variables, images: Float[Array, "B *NC H W 3"]
    ) -> Float[Array, "B K h w"]:
        """Computes the maps.

        Args:
            model: Called ``(images, *, train)``.
            variables: Params and batch_stats.
            images: Normalised images; a model that takes NC crops of each returns K = NC maps.

        Returns:
            The maps, float32.

        Raises:
            InputError: There is no such layer with features ``(B, h, w, C)``.
        """

        def outputs(delta: Any) -> tuple[Array, dict[str, Array]]:
            found: dict[str, Array] = {}

            def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
                output, path = call(*args, **kwargs), "/".join(context.module.path)
                if context.method_name != "__call__" or getattr(output, "ndim", 0) != 4:
                    return output
                found[path] = output
                return output + delta if path == self.layer and delta is not None else output

            with nn.intercept_methods(intercept):
                logits, _ = model.apply(variables, images, train=False)
            return logits, found

        _, shapes = jax.eval_shape(lambda: outputs(None))
        if self.layer not in shapes:
            field = "evaluation.grad_cam" if self.rectify else "evaluation.cam"
            raise unknown(field, self.layer, shapes)

        def score(delta: Array) -> tuple[Array, Array]:
            logits, found = outputs(delta)
            chosen = jax.lax.stop_gradient(self._chosen(logits))
            of_class = jnp.take_along_axis(logits, chosen[:, None], axis=1)
            return of_class.sum(), found[self.layer]

        zeros = jnp.zeros(shapes[self.layer].shape, shapes[self.layer].dtype)
        gradients, features = jax.grad(score, has_aux=True)(zeros)
        weights = gradients.astype(jnp.float32).mean((1, 2))
        maps = jnp.einsum("bhwc,bc->bhw", features.astype(jnp.float32), weights)
        maps = nn.relu(maps) if self.rectify else maps
        return maps.reshape(len(images), -1, *maps.shape[1:])

    def _chosen(self, logits: Float[Array, "B classes"]) -> Int[Array, " B"]:
        if self.target is None:
            return logits.argmax(-1)
        return jnp.full(len(logits), self.target)
