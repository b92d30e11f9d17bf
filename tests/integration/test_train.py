import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import checkpoints, evaluate, losses, report, run_dir, signals, train
from jaxattn.checkpoints import Checkpoints
from jaxattn.early_stopping import EarlyStopping
from jaxattn.errors import InputError
from jaxattn.evaluation import calibration, predictions

ROOT = Path(__file__).parents[2]


def final(config, folder):
    """The latest checkpoint of a run."""
    with Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        state, memory = saved.restore(saved.latest, train.setup(config).like)
    return state, memory


def entries(folder):
    """What a run logged."""
    return [json.loads(line) for line in (folder / run_dir.LOG).read_text().splitlines()]


def differing(one, other):
    """Names of the leaves that are not bit for bit the same."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    return [
        jax.tree_util.keystr(path)
        for (path, a), b in pairs
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]


@pytest.fixture(scope="module")
def whole(make_config, tmp_path_factory):
    """A run from beginning to end, not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    assert train.train(make_config(), folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the run, to change."""
    return shutil.copytree(whole, tmp_path / "copied")


# 0: before the first step; 1, 9: within an epoch; 6: at its end; 8: on a checkpoint within one.
@pytest.mark.parametrize(
    ("loader", "stops"),
    [
        ("in_memory", (0,)),
        ("grain", (1, 9)),
        ("in_memory", (6,)),
        ("grain", (8, 23)),
        ("in_memory", (8, 23)),
    ],
)
def test_resuming_is_bit_for_bit(tiny_config, whole, tmp_path, stops, loader):
    tiny_config.loader.name = loader  # a resumed run may use the other one
    for stop in stops:
        assert not train.train(tiny_config, tmp_path / "stopped", lambda step: step == stop)  # noqa: B023
    assert train.train(tiny_config, tmp_path / "stopped")
    (one, memory), (other, again) = (
        final(tiny_config, folder) for folder in (whole, tmp_path / "stopped")
    )
    assert differing(one, other) == []
    assert memory == again
    logs = [
        {
            (entry["kind"], entry["step"]): entry.get("balanced_accuracy")
            for entry in entries(folder)
            if entry["kind"] == "validation"
        }
        for folder in (whole, tmp_path / "stopped")
    ]
    assert logs[0] == logs[1]
    assert [step for _, step in logs[0]] == [6, 12, 18, 24]


def test_a_finished_run_is_not_trained_again(tiny_config, whole):
    before = (whole / run_dir.LOG).read_text()
    assert train.train(tiny_config, whole, lambda step: pytest.fail("a step was taken"))
    assert (whole / run_dir.LOG).read_text() == before


def test_what_a_run_leaves(tiny_config, whole):
    log = entries(whole)
    steps = [entry["step"] for entry in log if entry["kind"] == "train"]
    assert steps == [4, 8, 12, 16, 20, 24]
    assert all(entry["images_per_second"] > 0 for entry in log if entry["kind"] == "train")
    assert json.loads((whole / run_dir.CONFIG).read_text())["model"] == {"name": "tiny", "width": 8}
    assert len((whole / run_dir.SPLIT).read_text().splitlines()) == 211
    assert list((whole / "tensorboard").glob("events.*"))
    best = max(
        (entry for entry in log if entry["kind"] == "validation"),
        key=lambda entry: entry["balanced_accuracy"],
    )
    with Checkpoints(whole / run_dir.CHECKPOINTS) as saved:
        assert saved.latest == 24
        assert saved.best == best["step"]


def test_evaluation_of_the_best_checkpoint(tiny_config, copied):
    whole = copied
    result = evaluate.evaluate(whole)
    built = train.setup(tiny_config)
    variables, step = checkpoints.read_variables(whole / run_dir.CHECKPOINTS)
    rows = built.split["test"]
    pixels = np.stack([built.dataset.records[row]["image"] for row in rows]) / np.float32(127.5) - 1
    logits, _ = built.model.apply(variables, pixels.astype(np.float32), train=False)
    accuracy = float((np.asarray(logits).argmax(1) == built.dataset.labels[rows]).mean())
    assert result["step"] == step
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert json.loads((whole / "evaluation" / "test.json").read_text()) == json.loads(
        json.dumps(result)
    )
    # All numbers follow from the predictions on disk.
    part, chosen_on = (
        predictions.read(whole / "evaluation" / f"{name}_predictions.csv")
        for name in ("test", "validation")
    )
    assert part.image_ids.tolist() == built.dataset.table["image_id"][rows].tolist()
    assert len(chosen_on) == len(built.split["validation"])
    again = evaluate.measure(tiny_config, part, chosen_on)
    assert {name: result[name] for name in again} == again
    kept = json.loads((whole / calibration.TEMPERATURE).read_text())
    assert kept["temperature"] == result["temperature"]["temperature"]
    assert (kept["step"], kept["tta"]) == (step, 1)
    points = result["operating_points"]["nv"]["sensitivity"]
    assert points["where_chosen"]["recall"] >= tiny_config.evaluation.sensitivity
    low, high = result["intervals"]["balanced_accuracy"]
    assert low <= result["metrics"]["balanced_accuracy"] <= high
    agreement = result["map_agreement"]["maps"]["attention"]
    assert agreement["jaccard"] == result["jaccard"]["mean"]["attention"]
    assert result["parts"]["test"]["images"] == len(rows)
    cases = np.load(whole / "evaluation" / "test_cases.npz")
    assert cases["image"].shape[1:] == (32, 32, 3)
    np.testing.assert_allclose(cases["map/attention"].sum((2, 3)), 1, atol=1e-5)
    with pytest.raises(
        InputError, match="split: expected one of .* \\(did you mean 'test'\\?\\), got 'tests'"
    ):
        evaluate.evaluate(whole, "tests")


def test_early_stopping_by_hand(tiny_config):
    """Keras' EarlyStopping(min_delta=.001, patience=2) and ModelCheckpoint(save_best_only)."""
    tiny_config.best = "accuracy"
    tiny_config.early_stopping.update(metric="loss", patience=2, min_delta=0.001)
    memory, stopped, bests = EarlyStopping(), [], []
    for loss, accuracy in [
        (1.0, 0.5),
        (0.9, 0.4),
        (0.8995, 0.6),
        (0.8985, 0.6),
        (0.9, 0.1),
        (0.8, 0.1),
        (0.9, 0.7),
    ]:
        before = memory
        memory = memory.update({"loss": loss, "accuracy": accuracy}, tiny_config)
        stopped.append(memory.should_stop(tiny_config))
        bests.append(memory.best != before.best)
    assert stopped == [False, False, False, False, False, False, False]
    assert bests == [True, False, True, False, False, False, True]
    for loss in (0.8, 0.7999):
        memory = memory.update({"loss": loss, "accuracy": 0.0}, tiny_config)
    assert memory.should_stop(tiny_config)
    assert memory == EarlyStopping(best=0.7, stopping=0.8, waited=3)


def test_a_run_stops_early_and_stays_stopped(tiny_config, tmp_path):
    """No improvement counts that is not larger than 1: two epochs after the first, it stops."""
    tiny_config.early_stopping.update(metric="accuracy", patience=2, min_delta=1.0)
    folder = tmp_path / "run"
    assert train.train(tiny_config, folder)
    assert max(entry["step"] for entry in entries(folder)) == 18
    assert train.train(tiny_config, folder, lambda step: pytest.fail("a step was taken"))


def test_epochs_without_validation(tiny_config, tmp_path):
    """Of seven, the first, every third and the last are validated, also if some are resumed."""
    tiny_config.update(epochs=7, validate_every=3, steps_per_epoch=2, checkpoint_every_steps=0)
    for stop in (4, 9, 14):  # after an epoch that is not validated, within one, at the end
        train.train(tiny_config, tmp_path / "run", lambda step, last=stop: step == last)
    validated = [e["epoch"] for e in entries(tmp_path / "run") if e["kind"] == "validation"]
    assert validated == [1, 3, 6, 7]


def test_another_config_in_the_same_folder_is_an_error(tiny_config, whole):
    tiny_config.optimizer.learning_rate = 0.5
    tiny_config.log_every_steps = 7  # changes nothing that is computed
    before = sorted(path.name for path in whole.iterdir())
    with pytest.raises(InputError) as error:
        train.train(tiny_config, whole)
    assert "optimizer.learning_rate: 0.001 -> 0.5" in str(error.value)
    assert "log_every_steps" not in str(error.value)
    assert sorted(path.name for path in whole.iterdir()) == before
    assert final(tiny_config, whole)[0].step == 24


def test_a_folder_with_other_files_is_left_alone(tiny_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="--workdir: expected a new folder"):
        train.train(tiny_config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_split_in_the_same_run_is_an_error(tiny_config, copied):
    path = copied / run_dir.SPLIT
    lines = path.read_text().splitlines()
    swapped = [line.replace(",test", ",train") for line in lines]
    path.write_text("\n".join(swapped) + "\n")
    with pytest.raises(InputError, match=r"split.csv, train part: expected the images"):
        train.train(tiny_config, copied)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    tiny_config.optimizer.update(name="sgd", learning_rate=1e30, schedule="constant", warmup=0.0)
    with pytest.raises(InputError) as error:
        train.train(tiny_config, tmp_path / "run")
    message = str(error.value)
    assert re.match("(loss|gradients|state): expected (a )?finite", message)
    assert "a lower optimizer.learning_rate" in message
    assert not run_dir.has_checkpoint(tmp_path / "run")


def test_a_step_that_is_not_finite_is_named_and_the_checkpoint_before_kept(
    tiny_config, tmp_path, monkeypatch
):
    """One step's loss is NaN: the run stops there, or with skip_nonfinite goes on without it."""
    make = losses.make

    def broken(config, examples):
        made = make(config, examples)

        def loss(logits, maps, batch):
            total, values = made(logits, maps, batch)
            total = jnp.where((batch["row"] == poison).any(), jnp.nan, total)
            return total, {**values, "loss": total}

        loss.mask = made.mask
        return loss

    built = train.setup(tiny_config)
    batch = built.sampler.batch(9)
    poison = next(row for row in batch if all(row not in built.sampler.batch(s) for s in range(9)))
    monkeypatch.setattr(losses, "make", broken)
    with pytest.raises(InputError) as error:
        train.train(tiny_config, tmp_path / "run")
    assert "loss: expected a finite number, got nan in step 10; the checkpoint of step 8" in str(
        error.value
    )
    for row in batch:
        assert str(built.dataset.table["image_id"][row]) in str(error.value)
    tiny_config.skip_nonfinite = 20  # a run may go on with another value
    assert train.train(tiny_config, tmp_path / "run")
    state, progress = final(tiny_config, tmp_path / "run")
    assert progress["skipped"] == sum(poison in built.sampler.batch(s) for s in range(24)) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert all(entry.get("loss", 0) is not None for entry in entries(tmp_path / "run"))


def test_what_an_interrupted_start_leaves_is_replaced(tiny_config, whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json.7.part").write_text('{"seed"')
    (folder / "config.json.part").write_text("{")  # of older versions
    with run_dir.opened(folder, train.setup(tiny_config).config):
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock"]
    for name in (run_dir.SPLIT, run_dir.CLASSES):
        content = (whole / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    built = train.setup(tiny_config)
    run_dir.record_split(folder, built.split, built.dataset)
    for name in (run_dir.SPLIT, run_dir.CLASSES):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_validation_that_was_cut_short_is_made_up_for(tiny_config, whole, tmp_path, monkeypatch):
    """The state is saved before: killed in the second validation, nothing is trained again."""
    validate, calls = evaluate.validate, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(evaluate, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(tiny_config, tmp_path / "run")
    steps = []
    assert train.train(tiny_config, tmp_path / "run", lambda step: steps.append(step))
    assert steps[0] == 12
    assert differing(final(tiny_config, whole)[0], final(tiny_config, tmp_path / "run")[0]) == []
    assert final(tiny_config, whole)[1] == final(tiny_config, tmp_path / "run")[1]
    validations = [e["step"] for e in entries(tmp_path / "run") if e["kind"] == "validation"]
    assert validations == [6, 12, 18, 24]


def test_a_damaged_latest_checkpoint_costs_no_more_than_its_steps(
    tiny_config, copied, whole, capsys
):
    newest = max((copied / run_dir.CHECKPOINTS).iterdir(), key=lambda path: int(path.name))
    next(newest.glob("state/d/*")).write_bytes(b"")
    steps = []
    assert train.train(tiny_config, copied, lambda step: steps.append(step))
    said = capsys.readouterr()
    assert "the checkpoint before is used" in said.err
    assert "resuming at step 20 of 24" in said.out
    assert steps == [20, 21, 22, 23]
    assert differing(final(tiny_config, whole)[0], final(tiny_config, copied)[0]) == []


def test_a_log_with_torn_and_damaged_lines(copied, capsys):
    """Lines of steps that are taken again and a torn tail are cut off; nothing is rewritten."""
    path = copied / run_dir.LOG
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b'{"kind": "tr\n', *lines[2:]])
    path.write_bytes(damaged + b'{"kind": "train", "st\0\0\0')
    log = run_dir.Log(copied, 24)
    log.write("train", 28, loss=float("nan"))
    log.close()
    log.flush()  # by a signal in the evaluation after it
    assert "2 damaged lines" in capsys.readouterr().err
    assert path.read_bytes() == damaged + b'{"kind": "train", "step": 28, "loss": null}\n'
    run_dir.Log(copied, 12).close()
    kept = path.read_bytes()
    assert damaged.startswith(kept)
    assert max(json.loads(line)["step"] for line in kept.splitlines()[3:]) == 12
    run_dir.Log(copied, 12, validated=False).close()
    assert json.loads(path.read_bytes().splitlines()[-1])["kind"] == "train"


def test_settings_of_evaluation_may_change_after_training(copied, tmp_path):
    config = run_dir.read_config(copied)
    config.evaluation.grad_cam = "Conv_0"
    assert train.train(config, copied, lambda step: pytest.fail("a step was taken"))
    out = tmp_path / "elsewhere"
    settings = {"tta": 8, "logit_adjustment": 1.0, "overlay.alpha": 0.25}
    result = evaluate.evaluate(copied, out=out, settings=settings)
    assert result["settings"]["tta"] == 8
    assert result["settings"]["overlay"]["alpha"] == 0.25
    assert "map/grad_cam" in np.load(out / "evaluation" / "test_cases.npz")
    assert not (copied / "evaluation").exists()
    report.write(copied, out)
    assert (out / "report.html").exists()
    assert not (copied / "report.html").exists()
    with pytest.raises(InputError, match=r"evaluation.grad_cam: expected one of .*Conv_0"):
        evaluate.evaluate(copied, settings={"grad_cam": "Conv_9"})


def test_a_metric_that_is_undefined_cannot_choose(tiny_config):
    built = train.setup(tiny_config)
    name = built.dataset.class_names[0]
    tiny_config.update(best="macro_auc", target_class=name)
    split = {**built.split, "validation": np.flatnonzero(built.dataset.labels == 0)}
    with pytest.raises(InputError, match=r"best: expected a metric that is defined .*'macro_auc'"):
        evaluate.check_criteria(tiny_config, built.dataset, split)
    tiny_config.update(best="loss", early_stopping={"metric": "auc"})
    split["validation"] = np.flatnonzero(built.dataset.labels > 0)
    with pytest.raises(InputError, match=r"early_stopping.metric: expected .*'auc'"):
        evaluate.check_criteria(tiny_config, built.dataset, split)
    evaluate.check_criteria(tiny_config, built.dataset, built.split)


WRONG = [
    (
        {"best": "acuracy"},
        "best: expected one of accuracy, balanced_accuracy, loss, macro_auc (did",
    ),
    ({"early_stopping.metric": "lose"}, "(did you mean 'loss'?), got 'lose'"),
    ({"dtype": "float16"}, "(did you mean 'bfloat16'?), got 'float16'"),
    ({"epochs": 0}, "epochs: expected a whole number in [1, "),
    ({"batch_size": 0}, "batch_size: expected"),
    ({"evaluation.tta": 4}, "evaluation.tta: expected one of 1, 8, got 4"),
    ({"model.name": "tinny"}, "did you mean 'tiny'"),
    ({"dataset.name": "ham"}, "dataset.name: expected one of"),
    ({"dataset.name": "prepared"}, "dataset.data_dir: expected"),
    ({"dataset.name": "prepared", "dataset.data_dir": "nowhere"}, "nowhere"),
    ({"sampler.name": "over"}, "sampler.name: expected one of"),
    ({"loader.name": "memory"}, "loader.name: expected one of"),
    ({"normalisation": "zscore"}, "normalisation: expected one of"),
    ({"augment.zoom": 1.5}, "augment.zoom: expected"),
    ({"loss.name": "dice"}, "loss.name: expected one of cross_entropy, got 'dice'"),
    ({"loss.reduction": "sum"}, "loss.reduction: expected one of mean, weighted_mean, got 'sum'"),
    ({"split.test": 2.0}, "split.test: expected"),
    ({"crops.strategy": "random", "dataset.image_size": 0}, "dataset.image_size: expected a size"),
    ({"target_class": "mole"}, "target_class: expected one of"),
    ({"evaluation.grad_cam": "Conv_9"}, "evaluation.grad_cam: expected one of"),
    ({"init_from": "nowhere"}, "nowhere: expected a folder that a tools/convert_*.py wrote"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_field_is_one_clear_error_and_changes_nothing(
    tiny_config, tmp_path, fields, message
):
    tiny_config.update_from_flattened_dict(fields)
    with pytest.raises(InputError) as error:
        train.train(tiny_config, tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


SMALL = (
    f"--config={ROOT}/configs/quickstart.py",
    "--config.dataset.num_images=210",
    "--config.dataset.image_size=32",
    "--config.model.width=8",
    "--config.batch_size=16",
    "--config.epochs=3",
    "--config.steps_per_epoch=20",
    "--config.log_every_steps=1",
)


def start(*arguments):
    """Starts the command line on a small run of the quickstart's model."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxattn.train", *SMALL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_line_stops_on_a_signal_resumes_evaluates_and_reports(tmp_path):
    folder = tmp_path / "run"
    running = start(f"--workdir={folder}")
    deadline = time.monotonic() + 600
    while not (folder / run_dir.LOG).exists() or len(entries(folder)) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate()
    assert running.returncode == signals.STOPPED == os.EX_TEMPFAIL
    assert f"the same command resumes {folder}" in out
    stopped = max(entry["step"] for entry in entries(folder))
    assert 2 <= stopped < 60
    resumed = start(f"--workdir={folder}")
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert f"resuming at step {stopped} of 60" in out
    assert "step 60/60: " in err  # a line where there is no terminal
    # Each step was taken once, in one of the two processes.
    taken = [entry["step"] for entry in entries(folder) if entry["kind"] == "train"]
    assert taken == list(range(1, 61))
    assert "balanced accuracy" in out
    assert f"report: {folder / 'report.html'}" in out
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.learning_rte=1", "learning_rate"),
        ("--config.batch_size=many", "many"),
        ("--config.model.name=attention_cn", "did you mean 'attention_cnn'"),
        ("surplus", "surplus"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(command, tmp_path, argument, message):
    status, out, err = command(train, *SMALL, f"--workdir={tmp_path / 'run'}", argument)
    assert status == 2
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()
