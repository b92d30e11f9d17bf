"""Trains a classifier: ``python -m jaxattn.train --config=configs/ham_irv2.py``.

The same command run again resumes where it stopped, bit for bit.
"""

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxattn import evaluate, experiment, metrics, pretrained, report, run_dir
from jaxattn.checkpoints import Checkpoints
from jaxattn.errors import InputError, run_main
from jaxattn.runtime import compilation, devices
from jaxattn.state import TrainState

LOWER_IS_BETTER = ("loss",)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a run remembers of its validations; saved with each checkpoint.

    Attributes:
        best: Best value of ``config.best`` so far.
        stopping: Best value of ``config.early_stopping.metric`` so far.
        waited: Epochs since the latter improved.
    """

    best: float | None = None
    stopping: float | None = None
    waited: int = 0

    def after(self, values: dict[str, float], config: ConfigDict) -> "Memory":
        """The memory after one more validation."""
        best, stop = config.best, config.early_stopping
        better = _better(best, values[best], self.best)
        goes_on = _better(stop.metric, values[stop.metric], self.stopping, stop.min_delta)
        return Memory(
            best=values[best] if better else self.best,
            stopping=values[stop.metric] if goes_on else self.stopping,
            waited=0 if goes_on else self.waited + 1,
        )

    def stops(self, config: ConfigDict) -> bool:
        """Whether it is time to stop early."""
        return 0 < config.early_stopping.patience <= self.waited


def _better(metric: str, value: float, than: float | None, by: float = 0.0) -> bool:
    if than is None or np.isnan(than):
        return True
    return value < than - by if metric in LOWER_IS_BETTER else value > than + by


def train(
    config: ConfigDict, folder: Path, stop: Callable[[int], bool] = lambda step: False
) -> bool:
    """Trains from scratch or from where the run in the folder stopped.

    Args:
        config: What to train, see `jaxattn.config.base`.
        folder: The run's folder.
        stop: Asked before each step with the number of steps taken; on True the state is saved.

    Returns:
        Whether the run is at its end (and not stopped before).

    Raises:
        InputError: The config, the data or the folder is wrong; nothing was changed.
    """
    built = experiment.build(config)
    resumes = (folder / run_dir.CHECKPOINTS).is_dir()
    start = None if resumes else _start(built)  # weights that do not fit leave no folder behind
    run_dir.open_folder(folder, config)
    run_dir.record_split(folder, built.split, built.dataset, built.leak)
    with Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        memory, step = Memory(), saved.latest or 0
        if saved.latest is None:
            state, origin = start or _start(built)
            if origin and jax.process_index() == 0:
                run_dir.write_json(folder / run_dir.ORIGIN, origin)
        else:
            state, remembered = saved.restore(step, built.abstract_state())
            memory = Memory(**remembered)
        log = run_dir.Log(folder, step)
        try:
            if step == built.total_steps or (
                step % built.steps_per_epoch == 0 and memory.stops(config)
            ):
                return True
            return _loop(built, state, memory, saved, log, stop)
        finally:
            log.close()


def _start(built: experiment.Experiment) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step, and where its weights come from, if from somewhere."""
    config, state = built.config, built.initial_state()
    if not config.init_from:
        return state, {}
    folder = Path(config.init_from)
    state, origin = pretrained.start_from(state, folder, json.loads(config.model.to_json()))
    if jax.process_index() == 0:
        print(f"{folder}: {origin['taken']} arrays taken", flush=True)
        for kind in ("new", "unused"):
            if origin[kind]:
                print(f"  {kind}: {', '.join(origin[kind])}", flush=True)
    return state, origin


def _loop(
    built: experiment.Experiment,
    state: TrainState,
    memory: Memory,
    saved: Checkpoints,
    log: run_dir.Log,
    stop: Callable[[int], bool],
) -> bool:
    config, step, pending = built.config, int(state.step), []
    train_step, predict_step = built.train_step(), built.predict_step()
    with _progress(built, step) as bar:
        since, images = None, 0
        for batch in built.loader.training(built.plan, step, built.total_steps):
            if stop(step):
                saved.save(state, dataclasses.asdict(memory), best=False)
                return False
            state, values = train_step(state, built.loader.data, batch)
            step += 1
            pending.append(values)
            if since is None:  # the rate is that of steps alone: not of compiling and validating
                jax.block_until_ready(values)
                since = time.perf_counter()
            else:
                images += config.batch_size
            if step % config.log_every_steps == 0:
                values = _mean(pending)
                rate = images / (time.perf_counter() - since)
                epoch = step / built.steps_per_epoch
                log.write("train", step, epoch=epoch, images_per_second=rate, **values)
                status = f"{rate:.1f} images/s, loss {values['loss']:.3f}"
                bar.update(bar.task_ids[0], completed=step, status=status)
                pending, since, images = [], time.perf_counter(), 0
            if step % built.steps_per_epoch == 0:
                bar.update(bar.task_ids[0], completed=step)
                before = memory
                values = validate(built, predict_step, state)
                if values:
                    memory = memory.after(values, config)
                    epoch = step // built.steps_per_epoch
                    log.write("validation", step, epoch=float(epoch), **values)
                    bar.console.print(_line(epoch, config.epochs, values), soft_wrap=True)
                saved.save(state, dataclasses.asdict(memory), best=memory.best != before.best)
                if memory.stops(config):
                    break
                since, images = None, 0
            elif config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
                saved.save(state, dataclasses.asdict(memory), best=False)
    return True


def validate(
    built: experiment.Experiment, predict_step: Any, state: TrainState
) -> dict[str, float]:
    """Loss, accuracy, balanced accuracy and macro AUC of the validation part; {} if it is empty.

    Of ``config.positive``, where it is given, AUC and average precision too.
    """
    rows = built.split["validation"]
    if not len(rows):
        return {}
    probabilities, _ = built.predict(predict_step, state.evaluated, rows)
    labels = built.dataset.labels[rows]
    values = metrics.classification(
        labels, probabilities, built.dataset.class_names, built.decide(probabilities)
    )
    likelihood = np.clip(probabilities[np.arange(len(rows)), labels], 1e-12, None)
    measured = {
        "loss": float(-np.log(likelihood).mean()),
        "accuracy": values["accuracy"],
        "balanced_accuracy": values["balanced_accuracy"],
        "macro_auc": values["macro"]["auc"],
    }
    if built.positive is not None:
        found = metrics.detection(labels == built.positive, probabilities[:, built.positive])
        measured |= {name: found[name] for name in experiment.POSITIVE_METRICS}
    # None where the part is of one class.
    return {name: float("nan") if value is None else value for name, value in measured.items()}


def _mean(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    values = jax.device_get(pending)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    if not np.isfinite(means["loss"]):
        raise InputError(
            f"the loss became {means['loss']} in the last {len(pending)} steps, a finite one "
            "wanted: a lower optimizer.learning_rate or dtype=float32 may help"
        )
    return means


def _progress(built: experiment.Experiment, step: int) -> Progress:
    bar = Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[status]}, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task("", total=built.total_steps, completed=step, status="compiling")
    return bar


def _line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
    return f"epoch {epoch}/{epochs}: validation {shown}"


def signals() -> Callable[[int], bool]:
    """Makes SIGINT and SIGTERM end a run after the step under way; a second one ends it at once."""
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


def workdir(given: flags.FlagValues) -> Path:
    """The folder that ``--workdir`` names, or one named after the config's file.

    Raises:
        InputError: There is no such config file.
    """
    file = Path(config_flags.get_config_filename(given["config"]).split(":")[0])
    if not file.is_file():
        raise InputError(f"--config: {str(file)!r} given, a file of configs/ wanted")
    return Path(given.workdir or f"runs/{file.stem}")


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    if given.distributed:
        jax.distributed.initialize()
    folder = workdir(given)
    devices.split_cpu(given.config.cpu_devices)
    compilation.use_cache()
    if not train(given.config, folder, signals()):
        print(f"stopped; the same command resumes {folder}")
        return
    evaluate.evaluate(folder)
    if jax.process_index() == 0:
        print(f"report: {report.write(folder)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What to train, a file of configs/.")
    flags.DEFINE_string("workdir", None, "The run's folder; by default runs/CONFIG.")
    flags.DEFINE_bool("distributed", False, "Whether other hosts take part in the run.")
    flags.mark_flag_as_required("config")
    run_main(main)
