"""Optimizers and learning-rate schedules by name: optax's, and Keras' Adam."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxattn.errors import invalid, unknown

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("keras_adam", "adamw", "sgd")
DECAYS = ("kernels", "all")


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as in Keras, which adds epsilon to the root of the *uncorrected* second moment.

    Keras' update is ``sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`` ("epsilon hat" of Kingma
    and Ba 2015, section 2), so against ``optax.scale_by_adam`` its epsilon is larger by
    ``1 / sqrt(1 - b2^t)``: 31 times in the first step. With the epsilon of 0.1 of Datta et al. 2021
    the two are different optimizers.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        scaled = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int = 1) -> optax.Schedule:
    """The learning rate of each step.

    Args:
        config: ``config.optimizer``. ``learning_rate`` is the peak; ``warmup`` the share of all
            steps in which the rate rises linearly from 0.
        total_steps: Steps of the whole run; ``cosine`` ends at 0 there.
        steps_per_epoch: ``step`` multiplies the rate by ``step_factor`` after ``step_start`` epochs
            (0: ``step_epochs``) and every ``step_epochs`` epochs from then on.

    Raises:
        InputError: Unknown schedule, a warm-up outside [0, 1), or epochs that are not positive.
    """
    if config.schedule not in SCHEDULES:
        raise unknown("optimizer.schedule", config.schedule, SCHEDULES)
    if not 0 <= config.warmup < 1:
        raise invalid("optimizer.warmup", "a share in [0, 1)", config.warmup)
    for field, least in (("step_epochs", 1), ("step_start", 0)):
        if config[field] < least:
            raise invalid(f"optimizer.{field}", f"at least {least}", config[field])
    rate, warmup = config.learning_rate, round(config.warmup * total_steps)
    if config.schedule == "cosine":
        if warmup:
            return optax.warmup_cosine_decay_schedule(
                0.0, rate, warmup, max(total_steps, warmup + 1)
            )
        return optax.cosine_decay_schedule(rate, max(1, total_steps))
    after = optax.constant_schedule(rate)
    if config.schedule == "step":
        after = _staircase(config, steps_per_epoch, warmup)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def _staircase(config: ConfigDict, steps_per_epoch: int, warmup: int) -> optax.Schedule:
    """Constant until the first decay, then decaying in steps; its step 0 is the end of warm-up."""
    every, start = config.step_epochs, config.step_start or config.step_epochs
    rate, factor = config.learning_rate, config.step_factor
    decay = optax.exponential_decay(rate * factor, every * steps_per_epoch, factor, staircase=True)
    return optax.join_schedules(
        [optax.constant_schedule(rate), decay], [start * steps_per_epoch - warmup]
    )


def make(
    config: ConfigDict,
    total_steps: int,
    steps_per_epoch: int = 1,
    layers: Callable[[], Sequence[str]] = lambda: (),
) -> optax.GradientTransformation:
    """The optimizer of ``config.optimizer``.

    Gradients are clipped first, to a global norm of ``clip_norm`` (Pascanu et al. 2013). Weight
    decay is decoupled in ``adamw`` and added to the gradient in ``sgd``, as in PyTorch. It acts on
    kernels only, or with ``decay='all'`` on biases and batch norm too, PyTorch's default. Last,
    each layer's update is multiplied by its `layer_rates`.

    Args:
        config: ``config.optimizer``.
        total_steps: See `schedule`.
        steps_per_epoch: See `schedule`.
        layers: Returns the model's layers in the order of the forward pass, see
            `jaxattn.models.registry.layers`; called if there are rates by layer.

    Raises:
        InputError: Unknown optimizer, schedule or decay, or rates of no layer.
    """
    parts = [_plain(config, schedule(config, total_steps, steps_per_epoch))]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.rates or config.layer_decay != 1:
        rates = layer_rates(config, layers())
        parts.append(optax.stateless(lambda updates, _: _by_layer(rates, updates)))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def layer_rates(config: ConfigDict, layers: Sequence[str]) -> dict[str, float]:
    """What multiplies the learning rate of each layer.

    ``layer_decay`` gives each layer that share of the next one's rate; the last layer's is 1 (Clark
    et al. 2020, section 3.1). ``rates`` multiplies the layers whose names begin as it says.

    Raises:
        InputError: ``rates`` names no layer.
    """
    rates = {name: config.layer_decay ** (len(layers) - 1 - i) for i, name in enumerate(layers)}
    for start, factor in config.rates.items():
        named = [name for name in layers if name == start or name.startswith(f"{start}/")]
        if not named:
            starts = {name.partition("/")[0] for name in layers}
            raise unknown("optimizer.rates", start, starts | set(layers))
        for name in named:
            rates[name] *= factor
    return rates


def _by_layer(rates: Mapping[str, float], updates: optax.Updates) -> optax.Updates:
    def scaled(path: Any, update: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        layer = next(each for n in (2, 1) if (each := "/".join(names[:n])) in rates)
        return rates[layer] * update

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _plain(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer, with the same rate for all layers."""
    if config.decay not in DECAYS:
        raise unknown("optimizer.decay", config.decay, DECAYS)
    decayed = functools.partial(_decayed, config.decay == "all")
    if config.name == "keras_adam":
        return optax.chain(
            scale_by_keras_adam(config.b1, config.b2, config.eps),
            optax.scale_by_learning_rate(rate),
        )
    if config.name == "adamw":
        return optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed
        )
    if config.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.sgd(rate, momentum=config.momentum, nesterov=True),
        )
    raise unknown("optimizer.name", config.name, OPTIMIZERS)


def _decayed(everything: bool, params: optax.Params) -> optax.Params:
    """Which leaves weight decay acts on: kernels alone, or everything."""
    return jax.tree.map(lambda leaf: everything or leaf.ndim > 1, params)
