"""Class activation maps: CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017).

Both weight the channels of a layer by their effect on a class's logit. They explain any trained
network, with or without attention.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.errors import invalid, unknown
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
        self,
        model: nn.Module,
        variables: Variables,
        images: Float[Array, "B *NC H W 3"],
        *metadata: Float[Array, "N fields"],
    ) -> Float[Array, "B K h w"]:
        """Computes the maps.

        Args:
            model: Called ``(images, *metadata, train=False)``.
            variables: Params and batch_stats.
            images: Normalised images; a model that takes NC crops of each returns K = NC maps.
            *metadata: What the model takes beside them, if anything.

        Returns:
            The maps, float32.

        Raises:
            InputError: There is no such layer with features ``(B, h, w, C)``.
        """
        shapes = self.check(model, variables, images)

        def score(delta: Array) -> tuple[Array, Array]:
            logits, found = _outputs(model, variables, (images, *metadata), {self.layer: delta})
            chosen = jax.lax.stop_gradient(self._chosen(logits))
            of_class = jnp.take_along_axis(logits, chosen[:, None], axis=1)
            return of_class.sum(), found[self.layer]

        zeros = jnp.zeros(shapes[self.layer].shape, shapes[self.layer].dtype)
        gradients, features = jax.grad(score, has_aux=True)(zeros)
        weights = gradients.astype(jnp.float32).mean((1, 2))
        maps = jnp.einsum("bhwc,bc->bhw", features.astype(jnp.float32), weights)
        maps = nn.relu(maps) if self.rectify else maps
        return maps.reshape(images.shape[0], -1, *maps.shape[1:])

    def check(self, model: nn.Module, variables: Any, images: Any) -> dict[str, Any]:
        """The shapes of all layers that could be explained, see `layers`.

        Raises:
            InputError: This layer is none of them.
        """
        shapes = layers(model, variables, images)
        if self.layer not in shapes:
            field = "evaluation.grad_cam" if self.rectify else "evaluation.cam"
            raise unknown(field, self.layer, shapes)
        return shapes

    def _chosen(self, logits: Float[Array, "B classes"]) -> Int[Array, " B"]:
        if self.target is None:
            return logits.argmax(-1)
        return jnp.full(logits.shape[0], self.target)


def layers(model: nn.Module, variables: Any, images: Any) -> dict[str, Any]:
    """Shapes of all features ``(B, h, w, C)``, by the path of their module, in order of use.

    Variables and images may be arrays or shapes.
    """
    order: list[str] = []

    def trace(variables: Any, images: Any) -> dict[str, Any]:
        found = _outputs(model, variables, (images,), {})[1]
        order.extend(found)
        return found

    shapes = jax.eval_shape(trace, variables, images)  # sorted by name
    return {path: shapes[path] for path in order}


def last_layer(model: nn.Module, variables: Variables, shape: tuple[int, ...]) -> str:
    """The last layer with features at several positions, which Grad-CAM usually explains.

    Args:
        model: Called ``(images, *, train)``.
        variables: Params and batch_stats.
        shape: Of the network's input for one image.

    Raises:
        InputError: There is none.
    """
    found = layers(model, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    spatial = [path for path, each in found.items() if each.shape[1] * each.shape[2] > 1]
    if not spatial:
        raise invalid("evaluation.grad_cam", "a model with features at positions", "none")
    return spatial[-1]


def _outputs(
    model: nn.Module, variables: Variables, inputs: tuple[Array, ...], added: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Logits, and features by layer; ``added`` is added to what the layers of its names return."""
    found: dict[str, Array] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output, path = call(*args, **kwargs), "/".join(context.module.path)
        if context.method_name != "__call__" or getattr(output, "ndim", 0) != 4:
            return output
        found[path] = output
        return output + added[path] if path in added else output

    with nn.intercept_methods(intercept):
        logits, _ = model.apply(variables, *inputs, train=False)
    return logits, found
