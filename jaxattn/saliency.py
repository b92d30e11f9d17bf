"""Where a class comes from: CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017).

Both weigh the channels of a layer by what they do to a class' logit. They explain any finished
network; attention maps, which a network computes for itself, need neither.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.errors import InputError, suggestion
from jaxattn.state import Variables


@dataclasses.dataclass(frozen=True)
class ClassActivation:
    """The class activation map of a layer.

    ``Σ_c w_c A_c`` over the layer's channels, with ``w_c`` the mean over positions of the logit's
    derivative by ``A_c``. With ``rectify`` that is Grad-CAM. Without it, and at the end of a
    network of which only global average pooling and a dense layer follow (VGG-16-GAP), it is CAM
    over the number of positions.

    Attributes:
        layer: Path of a module that returns features ``(B, h, w, C)``, as ``backbone/pool5``.
        target: The class to explain; None for the one predicted.
        rectify: Whether what speaks against the class is set to 0.
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
            images: Normalised images; where the model takes several crops of each, K are returned.

        Raises:
            InputError: There is no such layer, or it has no positions.
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
            raise InputError(f"layer {self.layer!r} given{suggestion(self.layer, shapes)}")

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
