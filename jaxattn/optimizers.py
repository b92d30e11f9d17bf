"""Optimizers by name: optax's, and Adam as Keras has it."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxattn.errors import InputError, suggestion

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("keras_adam", "adamw", "sgd")
DECAYS = ("kernels", "all")


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam with epsilon where Keras adds it: beside the *uncorrected* second moment.

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
        config: The fields learning_rate (its peak), schedule and warmup (the share of all steps in
            which it rises from 0 in a line) of ``config.optimizer``.
        total_steps: Steps of the whole run; ``cosine`` falls to 0 there.
        steps_per_epoch: After ``step_start`` times as many, and again after every ``step_epochs``
            times as many, ``step`` multiplies the rate by ``step_factor``.

    Raises:
        InputError: Unknown schedule, a warm-up outside [0, 1), or epochs that are not positive.
    """
    if config.schedule not in SCHEDULES:
        raise InputError(
            f"optimizer.schedule: {config.schedule!r} given{suggestion(config.schedule, SCHEDULES)}"
        )
    if not 0 <= config.warmup < 1:
        raise InputError(f"optimizer.warmup: {config.warmup} given, a share in [0, 1) wanted")
    rate, warmup = config.learning_rate, round(config.warmup * total_steps)
    after = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, max(1, total_steps - warmup)),
        "step": _stairs(config, steps_per_epoch, warmup),
    }[config.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def _stairs(config: ConfigDict, steps_per_epoch: int, before: int) -> optax.Schedule:
    """Falls again and again; ``before`` steps of the run are past at its own step 0."""
    every, start = config.step_epochs, config.step_start or config.step_epochs
    if every < 1 or start < 1:
        raise InputError(
            f"optimizer.step_epochs: {every} and step_start: {config.step_start} epochs given, at "
            "least one wanted"
        )
    first, every = start * steps_per_epoch, every * steps_per_epoch

    def rate(step: jax.Array | int) -> jax.Array:
        falls = jnp.maximum((step + before - first) // every + 1, 0)
        return config.learning_rate * config.step_factor**falls

    return rate


def build(
    config: ConfigDict, total_steps: int, steps_per_epoch: int = 1
) -> optax.GradientTransformation:
    """The optimizer of ``config.optimizer``.

    Weight decay is decoupled in ``adamw`` and joins the gradient in ``sgd``, as in PyTorch; it acts
    on kernels alone, or with ``decay='all'`` on biases and batch norm too, as PyTorch's own.

    Raises:
        InputError: Unknown optimizer, schedule or decay.
    """
    rate = schedule(config, total_steps, steps_per_epoch)
    if config.decay not in DECAYS:
        raise InputError(
            f"optimizer.decay: {config.decay!r} given{suggestion(config.decay, DECAYS)}"
        )
    every = config.decay == "all"
    decayed = lambda params: jax.tree.map(lambda leaf: every or leaf.ndim > 1, params)  # noqa: E731
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
    raise InputError(f"optimizer.name: {config.name!r} given{suggestion(config.name, OPTIMIZERS)}")
