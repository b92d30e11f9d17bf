"""Trains a classifier: ``python -m jaxattn.train --config=configs/ham_irv2.py``.

The same command run again resumes where it stopped, bit for bit.
"""

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxattn import cli, evaluate, losses, optimizers, pretrained, run_dir, runtime, state, steps
from jaxattn import config as configs
from jaxattn.checkpoints import Checkpoints
from jaxattn.data import load, preprocess
from jaxattn.data.augment import Augmentation
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset, height_width
from jaxattn.data.loaders import Loader
from jaxattn.data.samplers import Sampler
from jaxattn.data.splits import Split
from jaxattn.early_stopping import EarlyStopping
from jaxattn.errors import InputError, invalid, unknown
from jaxattn.models import registry as models
from jaxattn.runtime import devices
from jaxattn.state import TrainState


class Training(NamedTuple):
    """What the training loop needs, made of a config by `setup`.

    Attributes:
        config: The config, resolved.
        dataset: Decodes images.
        split: Rows of each part.
        sampler: Batches of the training part, as rows.
        loader: Batches of pixels on the devices.
        model: The classifier.
        init: Makes the state before the first step, on every device.
        step: The jitted training step, see `steps.make_train_step`.
        mesh: The devices.
    """

    config: ConfigDict
    dataset: Dataset
    split: Split
    sampler: Sampler
    loader: Loader
    model: nn.Module
    init: Callable[[], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    mesh: Mesh

    @property
    def like(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, to restore a checkpoint with."""
        return devices.like(jax.eval_shape(self.init), self.mesh)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return _steps_per_epoch(self.config, self.sampler)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, unless it stops early."""
        return self.config.epochs * self.steps_per_epoch


def setup(config: ConfigDict, mesh: Mesh | None = None) -> Training:
    """Builds what a config describes; computes nothing and reads no image.

    Args:
        config: See `jaxattn.config.base`.
        mesh: The devices; None for all.

    Raises:
        InputError: A field or the data set is wrong.
    """
    config = configs.resolved(config)
    _check(config)
    mesh = mesh or devices.mesh()
    dataset, split = load.load_split(config)
    evaluate.target_class(config, dataset)  # a wrong one is an error before anything is made
    sampler = Sampler.make(config, dataset, split["train"])
    loss = losses.make(
        config.loss,
        losses.Examples(
            dataset.labels, dataset.table["dx_type"], split["train"], dataset.class_names
        ),
    )
    loader = Loader(dataset, config.dataset.image_size, config.loader, mesh, masks=loss.mask)
    model = models.create(
        num_classes=len(dataset.class_names),
        dtype=jnp.dtype(config.dtype),
        **config.model.to_dict(),
    )
    crops = Crops(**config.crops)
    steps_per_epoch = _steps_per_epoch(config, sampler)
    shape = crops.input_shape(*height_width(config.dataset.image_size))
    optimizer = optimizers.make(
        config.optimizer,
        config.epochs * steps_per_epoch,
        steps_per_epoch,
        lambda: models.layers(model, shape),
    )

    def create() -> TrainState:
        key = jax.random.key(config.seed)
        return state.create(key, model, optimizer, shape, ema=config.ema_decay > 0)

    step = steps.make_train_step(
        model,
        optimizer,
        preprocess.make_training_preprocess(
            Augmentation(**config.augment), crops, config.normalisation
        ),
        loss,
        mesh,
        seed=config.seed,
        ema_decay=config.ema_decay,
    )
    return Training(
        config=config,
        dataset=dataset,
        split=split,
        sampler=sampler,
        loader=loader,
        model=model,
        init=jax.jit(create, out_shardings=devices.replicated(mesh)),
        step=step,
        mesh=mesh,
    )


def train(
    config: ConfigDict, folder: Path, stop: Callable[[int], bool] = lambda step: False
) -> bool:
    """Trains from scratch, or from where the run in the folder stopped.

    Args:
        config: What to train, see `jaxattn.config.base`.
        folder: The run's folder.
        stop: Asked before each step with the number of steps taken; on True the state is saved.

    Returns:
        Whether the run is complete, and not stopped before its end.

    Raises:
        InputError: The config, the data or the folder is wrong; nothing was changed.
    """
    run = setup(config)
    resumes = (folder / run_dir.CHECKPOINTS).is_dir()
    start = None if resumes else _start(run)  # weights that do not fit leave no folder behind
    run_dir.open_folder(folder, run.config)
    run_dir.record_split(folder, run.split, run.dataset, run.config.split.leak)
    with Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        stopping, step = EarlyStopping(), saved.latest or 0
        if saved.latest is None:
            train_state, origin = start or _start(run)
            if origin and jax.process_index() == 0:
                run_dir.write_json(folder / run_dir.ORIGIN, origin)
        else:
            train_state, progress = saved.restore(step, run.like)
            stopping = EarlyStopping(**progress)
        log = run_dir.Log(folder, step)
        try:
            ended = step % run.steps_per_epoch == 0 and stopping.should_stop(run.config)
            if step == run.total_steps or ended:
                return True
            return _loop(run, train_state, stopping, saved, log, stop)
        finally:
            log.close()


def _start(run: Training) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step, and the origin of its weights, {} for random ones."""
    config, train_state = run.config, run.init()
    if not config.init_from:
        return train_state, {}
    folder = Path(config.init_from).expanduser()
    train_state, origin = pretrained.start_from(
        train_state, folder, json.loads(config.model.to_json())
    )
    if jax.process_index() == 0:
        print(f"{folder}: {origin['taken']} arrays taken", flush=True)
        for kind in ("new", "unused"):
            if origin[kind]:
                print(f"  {kind}: {', '.join(origin[kind])}", flush=True)
    return train_state, origin


def _loop(
    run: Training,
    train_state: TrainState,
    stopping: EarlyStopping,
    saved: Checkpoints,
    log: run_dir.Log,
    stop: Callable[[int], bool],
) -> bool:
    config, step, pending = run.config, int(train_state.step), []
    predict_step = evaluate.make_predict_step(config, run.model, run.mesh)
    with _progress(run, step) as bar:
        since, images = None, 0
        for batch in run.loader.training(run.sampler, step, run.total_steps):
            if stop(step):
                saved.save(train_state, dataclasses.asdict(stopping), best=False)
                return False
            train_state, measured = run.step(train_state, run.loader.data, batch)
            step += 1
            pending.append(measured)
            if since is None:  # the rate counts steps only, not compiling and validating
                jax.block_until_ready(measured)
                since = time.perf_counter()
            else:
                images += config.batch_size
            if step % config.log_every_steps == 0:
                values = _mean(pending)
                rate = images / (time.perf_counter() - since)
                epoch = step / run.steps_per_epoch
                log.write("train", step, epoch=epoch, images_per_second=rate, **values)
                status = f"{rate:.1f} images/s, loss {values['loss']:.3f}"
                bar.update(bar.task_ids[0], completed=step, status=status)
                pending, since, images = [], time.perf_counter(), 0
            if step % run.steps_per_epoch == 0:
                bar.update(bar.task_ids[0], completed=step)
                before = stopping
                values = evaluate.validate(
                    config,
                    run.dataset,
                    run.split,
                    run.loader,
                    predict_step,
                    train_state.evaluated,
                )
                if values:
                    stopping = stopping.update(values, config)
                    epoch = step // run.steps_per_epoch
                    log.write("validation", step, epoch=float(epoch), **values)
                    bar.console.print(_line(epoch, config.epochs, values), soft_wrap=True)
                best = stopping.best != before.best
                saved.save(train_state, dataclasses.asdict(stopping), best=best)
                if stopping.should_stop(config):
                    break
                since, images = None, 0
            elif config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
                saved.save(train_state, dataclasses.asdict(stopping), best=False)
    return True


def _steps_per_epoch(config: ConfigDict, sampler: Sampler) -> int:
    return config.steps_per_epoch or config.passes_per_epoch * sampler.steps_per_pass


def _check(config: ConfigDict) -> None:
    """Raises InputError for wrong fields that no other part of the library checks."""
    evaluate.check(config)
    measured = evaluate.METRICS + (evaluate.TARGET_METRICS if config.target_class else ())
    for field, value in (
        ("best", config.best),
        ("early_stopping.metric", config.early_stopping.metric),
    ):
        if value not in measured:
            raise unknown(field, value, measured)
    if config.loss.maps.weights and config.crops.strategy == "ordered":
        raise invalid("loss.maps.weights", "nothing with crops.strategy='ordered'", "weights")
    for field in ("epochs", "log_every_steps", "passes_per_epoch"):
        if config[field] < 1:
            raise invalid(field, "at least 1", config[field])
    devices.check_batch_size("batch_size", config.batch_size)


def _mean(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    values = jax.device_get(pending)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    if not np.isfinite(means["loss"]):
        raise InputError(
            f"loss: expected a finite number, got {means['loss']} in the last {len(pending)} "
            "steps; a lower optimizer.learning_rate or dtype=float32 may help"
        )
    return means


def _progress(run: Training, step: int) -> Progress:
    bar = Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[status]}, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task("", total=run.total_steps, completed=step, status="compiling")
    return bar


def _line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
    return f"epoch {epoch}/{epochs}: validation {shown}"


def signals() -> Callable[[int], bool]:
    """Makes SIGINT and SIGTERM stop a run after the current step; a second one ends it at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    # Several hosts would stop at different steps; checkpoint_every_steps bounds what they lose.
    if jax.process_count() == 1:
        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)
    return lambda step: bool(received)


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_config_flags("The run's folder; by default runs/CONFIG.")
    flags.DEFINE_bool("distributed", False, "Whether other hosts take part in the run.")


def main(argv: list[str]) -> None:
    """Trains, evaluates the best checkpoint on the test part and writes the report."""
    del argv
    given = flags.FLAGS
    if given.distributed:
        jax.distributed.initialize()
    config, folder = given.config, cli.workdir()
    runtime.setup(config.cpu_devices)
    if not train(config, folder, signals()):
        print(f"stopped; the same command resumes {folder}")
        return
    evaluate.evaluate(folder)
    evaluate.write_report(folder)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
