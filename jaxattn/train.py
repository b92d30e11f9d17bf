"""Trains a classifier: ``python -m jaxattn.train --config=configs/ham_irv2.py``.

The same command run again resumes where it stopped, bit for bit.
"""

from jaxattn import signals

if __name__ == "__main__":
    signals.install()  # before the imports below, which take seconds

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxattn import cli, evaluate, losses, optimizers, pretrained, record, run_dir, runtime, steps
from jaxattn import config as configs
from jaxattn import state as states
from jaxattn.checkpoints import Checkpoints
from jaxattn.data import load, metadata, preprocess
from jaxattn.data.augment import Augmentation
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset, height_width
from jaxattn.data.loaders import Loader
from jaxattn.data.metadata import Vocabulary
from jaxattn.data.mixing import Mixing
from jaxattn.data.samplers import Sampler
from jaxattn.data.splits import Split
from jaxattn.early_stopping import Progress
from jaxattn.errors import invalid, unknown
from jaxattn.freezing import Frozen
from jaxattn.models import registry as models
from jaxattn.models.layers import batch_norm_groups
from jaxattn.runtime import devices, distributed, finite
from jaxattn.runtime.progress import Meter
from jaxattn.runtime.stepper import Stepper
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
        vocabulary: Of the metadata that the model sees; None if it sees images alone.
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
    vocabulary: Vocabulary | None = None

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

    def validates(self, epoch: int) -> bool:
        """Whether there is a validation after an epoch, counted from 1."""
        return epoch in (1, self.config.epochs) or epoch % self.config.validate_every == 0


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
    vocabulary = metadata.learn(config.metadata.fields, dataset.table, split["train"])
    loader = Loader(dataset, config.dataset.image_size, config.loader, mesh, loss.mask, vocabulary)
    evaluate.check_criteria(config, dataset, split)
    sizes = vocabulary.sizes if vocabulary else None
    model = models.of_config(config, len(dataset.class_names), sizes)
    evaluate.check_layers(config, model)
    augmentation, crops = Augmentation(**config.augment), Crops(**config.crops)
    steps_per_epoch = _steps_per_epoch(config, sampler)
    shape = crops.input_shape(*height_width(config.dataset.image_size))
    layers = functools.partial(models.layers, model, shape)
    frozen = Frozen.up_to(config.freeze, layers)
    optimizer = optimizers.make(
        config.optimizer, config.epochs * steps_per_epoch, steps_per_epoch, layers
    )

    def create() -> TrainState:
        key = jax.random.key(config.seed)
        return states.create(key, model, optimizer, shape, ema=config.ema_decay > 0, frozen=frozen)

    if config.batch_norm_groups > 1:  # layers that cannot have groups are refused here
        with batch_norm_groups(config.batch_norm_groups):
            jax.eval_shape(create)
    step = steps.make_train_step(
        model,
        optimizer,
        preprocess.make_training_preprocess(augmentation, crops, config.normalisation),
        loss,
        mesh,
        seed=config.seed,
        mixing=Mixing(augmentation.mixup, augmentation.cutmix),
        ema_decay=config.ema_decay,
        skip_nonfinite=config.skip_nonfinite > 0,
        accumulate=config.accumulate_steps,
        groups=config.batch_norm_groups,
        remat=config.remat == "blocks",
        frozen=frozen,
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
        vocabulary=vocabulary,
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
    # Weights that do not fit leave no folder behind.
    start = None if run_dir.has_checkpoint(folder) else _start(run)
    with run_dir.opened(folder, run.config), Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        saved.clean()
        run_dir.record_split(
            folder, run.split, run.dataset, run.config.split.leak, vocabulary=run.vocabulary
        )
        restored = saved.restore_latest(run.like)
        if restored is None:
            train_state, origin = start or _start(run)
            if origin and jax.process_index() == 0:
                run_dir.write_json(folder / run_dir.ORIGIN, origin)
            progress = Progress()
        else:
            train_state, progress = restored[0], Progress.from_json(restored[1])
        step = int(train_state.step)
        if _finished(run, progress, step):
            return True
        with (
            contextlib.closing(run_dir.Log(folder, step, progress.validated)) as log,
            record.session(folder, _facts(run, train_state), step) as entry,
        ):
            complete = _loop(run, folder, train_state, progress, saved, log, stop)
            entry["last_step"] = saved.latest
            return complete


def _finished(run: Training, progress: Progress, step: int) -> bool:
    """Whether a run has nothing left to do."""
    ended = step == run.total_steps or progress.stopping.should_stop(run.config)
    return progress.validated and ended and step % run.steps_per_epoch == 0


def _facts(run: Training, train_state: TrainState) -> dict[str, Any]:
    """What `record` keeps of a run."""
    return {
        "seed": run.config.seed,
        "dataset": run.dataset.name,
        "images": {part: len(rows) for part, rows in run.split.items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(train_state.params)),
        "steps_per_epoch": run.steps_per_epoch,
        "total_steps": run.total_steps,
        "deterministic": runtime.is_deterministic(),
    }


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
    folder: Path,
    state: TrainState,
    progress: Progress,
    saved: Checkpoints,
    log: run_dir.Log,
    stop: Callable[[int], bool],
) -> bool:
    config, step, pending = run.config, int(state.step), []
    if step and jax.process_index() == 0:
        print(f"resuming at step {step} of {run.total_steps}", flush=True)
    watch = finite.Watch(run.dataset, run.sampler, config.skip_nonfinite, progress.skipped)
    with (
        Meter(run.total_steps, step, config.batch_size) as meter,
        Stepper(run.step, config, run.mesh.local_devices[0], folder / run_dir.PROFILE) as take,
    ):
        keep = _Keeper(run, saved, log, meter, watch)
        if not progress.validated:  # stopped while it was
            progress = keep.validate(state, progress)
            if progress.stopping.should_stop(config):
                return True
        for batch in run.loader.training(run.sampler, step, run.total_steps):
            if stop(step):
                keep.save(state, progress, passing=True)
                return False
            state, measured = take(state, run.loader.data, batch)
            signals.hold()
            watch.add(step, measured)
            meter.count(measured)
            pending.append(measured)
            step += 1
            if step % config.log_every_steps == 0:
                watch.check(saved.latest)
                values, rate, pending = _mean(pending), meter.rate(), []
                epoch = step / run.steps_per_epoch
                log.write("train", step, epoch=epoch, images_per_second=rate, **values)
                meter.show(step, f"{rate:.1f} images/s, loss {values['loss']:.3f}")
            if step % run.steps_per_epoch == 0:
                due = run.validates(step // run.steps_per_epoch)
                # Saved first, so that nothing is lost if the validation is cut short.
                keep.save(state, dataclasses.replace(progress, validated=not due))
                progress = keep.validate(state, progress) if due else progress
                if progress.stopping.should_stop(config):
                    break
            elif config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
                keep.save(state, progress)
    return True


class _Keeper:
    """Saves and validates states of a run."""

    def __init__(
        self,
        run: Training,
        saved: Checkpoints,
        log: run_dir.Log,
        meter: Meter,
        watch: finite.Watch,
    ):
        self._run, self._saved, self._log = run, saved, log
        self._meter, self._watch = meter, watch
        self._predict_step = evaluate.make_predict_step(run.config, run.model, run.mesh)

    def save(self, state: TrainState, progress: Progress, passing: bool = False) -> None:
        """Saves a state, if it is finite; from then on a signal ends the program at once."""
        self._watch.check_state(state, self._saved.latest)
        progress = dataclasses.replace(progress, skipped=self._watch.skipped)
        self._saved.save(state, progress.to_json(), best=False, passing=passing)
        if not passing:
            signals.release(self._flush)

    def validate(self, state: TrainState, progress: Progress) -> Progress:
        """Validates the state that was just saved, and notes whether it is the best."""
        run, step, stopping = self._run, int(state.step), progress.stopping
        self._meter.pause()
        values = evaluate.validate(
            run.config, run.dataset, run.split, run.loader, self._predict_step, state.evaluated
        )
        if values:
            stopping = stopping.update(values, run.config)
            epoch = step // run.steps_per_epoch
            self._log.write("validation", step, epoch=float(epoch), **values)
            self._meter.print(_line(epoch, run.config.epochs, values))
        better = stopping.best != progress.stopping.best
        progress = Progress(stopping, validated=True, skipped=self._watch.skipped)
        self._saved.note(progress.to_json(), best=better)
        return progress

    def _flush(self) -> None:
        self._saved.flush()
        self._log.flush()


def _steps_per_epoch(config: ConfigDict, sampler: Sampler) -> int:
    return config.steps_per_epoch or config.passes_per_epoch * sampler.steps_per_pass


def _check(config: ConfigDict) -> None:
    """Raises InputError for wrong fields that no other part of the library checks."""
    measured = evaluate.METRICS + (evaluate.TARGET_METRICS if config.target_class else ())
    for field, value in (
        ("best", config.best),
        ("early_stopping.metric", config.early_stopping.metric),
    ):
        if value not in measured:
            raise unknown(field, value, measured)
    if config.loss.maps.weights and config.crops.strategy == "ordered":
        raise invalid("loss.maps.weights", "nothing with crops.strategy='ordered'", "weights")
    if config.metadata.fields and (config.augment.mixup or config.augment.cutmix):
        expected = "none with augment.mixup or augment.cutmix"
        raise invalid("metadata.fields", expected, config.metadata.fields)
    devices.check_batch_size("batch_size", config.batch_size)
    devices.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    shares = config.batch_size // jax.device_count()
    if shares % config.accumulate_steps:
        expected = f"a divisor of the {shares} images of a device"
        raise invalid("accumulate_steps", expected, config.accumulate_steps)
    at_once = config.batch_size // config.accumulate_steps
    if at_once % config.batch_norm_groups:
        expected = f"a divisor of the {at_once} images that run at once"
        raise invalid("batch_norm_groups", expected, config.batch_norm_groups)


def _mean(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means of the metrics over the steps that were finite."""
    values = [v for v in jax.device_get(pending) if v["finite"]]
    names = [name for name in pending[0] if name != "finite"]
    return {name: float(np.mean([v[name] for v in values] or [np.nan])) for name in names}


def _line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
    return f"epoch {epoch}/{epochs}: validation {shown}"


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_config_flags("The run's folder; by default runs/CONFIG.")
    cli.define_deterministic_flag()
    flags.DEFINE_bool("distributed", False, "Whether other hosts take part in the run.")
    flags.DEFINE_bool("verify", False, "Reread every record of the prepared data first.")


def main(argv: list[str]) -> int:
    """Trains, evaluates the best checkpoint on the test part and writes the report.

    Returns:
        The exit status: `signals.STOPPED` if a signal stopped it and there is more to do.
    """
    del argv
    config, folder = configs.resolved(flags.FLAGS.config), cli.workdir()
    signals.describe(f"the same command resumes {folder}")
    with distributed.joined(flags.FLAGS.distributed):
        runtime.setup(config.cpu_devices, flags.FLAGS.deterministic)
        distributed.meet()
        if flags.FLAGS.verify and config.dataset.name == "prepared":
            from jaxattn.data.tfds import verify  # TFDS imports slowly

            verify.verify(Path(config.dataset.data_dir).expanduser())
        if not train(config, folder, lambda step: signals.requested()):
            print(f"stopped; the same command resumes {folder}")
            return signals.STOPPED
        evaluate.evaluate(folder)
        evaluate.write_report(folder)
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
