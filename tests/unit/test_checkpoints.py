"""What is saved, kept and deleted, and what becomes of damaged checkpoints."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxattn import checkpoints
from jaxattn.checkpoints import Checkpoints
from jaxattn.errors import InputError
from jaxattn.runtime import devices
from jaxattn.state import TrainState


def make_state(step: int) -> TrainState:
    """A state whose numbers tell the step."""
    weights = jnp.arange(64, dtype=jnp.float32) + 1000 * step
    return TrainState(
        step=jnp.int32(step),
        params={"dense": {"kernel": weights.reshape(8, 8)}},
        batch_stats={},
        opt_state={"mean": weights / 2},
        ema=None,
    )


LIKE = devices.like(jax.eval_shape(lambda: make_state(0)), devices.mesh())


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def save(folder, *steps, best=()):
    with Checkpoints(folder) as saved:
        for step in steps:
            saved.save(make_state(step), {"waited": step}, best=step in best)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints, not to be changed."""
    folder = tmp_path_factory.mktemp("pair") / "checkpoints"
    save(folder, 1, 2)
    return folder


def test_the_latest_the_one_before_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, best=(1, 2))
    assert steps_in(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path) as saved:
        assert (saved.latest, saved.best) == (5, 2)
        state, progress = saved.restore(5, LIKE)
    assert progress == {"waited": 5}
    np.testing.assert_array_equal(
        state.params["dense"]["kernel"], make_state(5).params["dense"]["kernel"]
    )
    assert state.ema is None


def test_a_passing_checkpoint_does_not_push_out_the_one_before(tmp_path):
    """A run that was stopped at 3 and went on keeps what one without a stop keeps."""
    with Checkpoints(tmp_path) as saved:
        for step in (1, 2, 3):
            saved.save(make_state(step), {}, best=step == 1, passing=step == 3)
    assert steps_in(tmp_path) == [1, 2, 3]
    save(tmp_path, 4)
    assert steps_in(tmp_path) == [1, 2, 4]


def test_notes_can_be_replaced(tmp_path):
    with Checkpoints(tmp_path) as saved:
        for step in (1, 2):
            saved.save(make_state(step), {"validated": False}, best=False)
            saved.note({"validated": True}, best=step == 1)
    with Checkpoints(tmp_path) as saved:
        assert saved.best == 1
        assert saved.restore_latest(LIKE)[1] == {"validated": True}


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path: path.write_bytes(
        path.read_bytes()[:5] + bytes([path.read_bytes()[5] ^ 4]) + path.read_bytes()[6:]
    ),
}


def test_every_damage_to_every_file_is_named_and_the_checkpoint_before_is_used(
    pair, tmp_path, capsys
):
    names = [str(p.relative_to(pair)) for p in sorted(pair.glob("2/**/*")) if p.is_file()]
    assert len(names) > 5
    for name in names:
        for how, damage in DAMAGES.items():
            folder = tmp_path / name.replace("/", "_") / how
            shutil.copytree(pair, folder)
            damage(folder / name)
            with pytest.raises(InputError) as error, Checkpoints(folder) as saved:
                saved.restore(2, LIKE)
            assert str(folder / "2") in str(error.value)
            assert "\n" not in str(error.value)
            assert checkpoints.read_variables(folder, "latest")[1] == 1
            capsys.readouterr()
            with Checkpoints(folder) as saved:
                state, progress = saved.restore_latest(LIKE)
                said = capsys.readouterr().err
                assert "the checkpoint before is used" in said, (name, how)
                assert (int(state.step), progress) == (1, {"waited": 1})
                saved.save(make_state(2), {}, best=True)
            assert steps_in(folder) == [1, 2]  # the damaged one is gone


def test_every_flipped_bit_of_the_arrays_is_found(pair, tmp_path):
    folder = shutil.copytree(pair, tmp_path / "copy")
    paths = [path for path in folder.glob("2/state/**/d/*") if path.is_file()]
    draw = np.random.default_rng(0)
    for _ in range(150):
        path = paths[draw.integers(len(paths))]
        content = path.read_bytes()
        flipped, bit = bytearray(content), int(draw.integers(8 * len(content)))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with Checkpoints(folder) as saved, pytest.raises(InputError, match="has changed"):
            saved.check(2)
        path.write_bytes(content)


def test_the_best_checkpoint_is_gone(tmp_path, capsys):
    save(tmp_path, 1, 2, 3, best=(1,))
    shutil.rmtree(tmp_path / "1")
    variables, step = checkpoints.read_variables(tmp_path)
    assert step == 3
    assert variables["params"]["dense"]["kernel"][0, 0] == 3000
    assert "step 3 is used instead" in capsys.readouterr().err


def test_all_checkpoints_damaged_is_one_line(pair, tmp_path):
    folder = shutil.copytree(pair, tmp_path / "copy")
    for path in folder.glob("*/manifest.json"):
        path.write_text("{}")
    for read in (
        lambda: checkpoints.read_variables(folder),
        lambda: Checkpoints(folder).restore_latest(LIKE),
    ):
        with pytest.raises(InputError, match="there is no other checkpoint"):
            read()


def test_what_an_interrupted_process_left_is_cleaned_up(pair, tmp_path):
    folder = shutil.copytree(pair, tmp_path / "copy")
    for name in ("3.part/state", "1.deleted", "4.orbax-checkpoint-tmp-17/state"):
        (folder / name).mkdir(parents=True)
    inside = folder / "2" / "manifest.json.17.part"
    inside.write_text("{")
    with Checkpoints(folder) as saved:
        assert saved.latest == 2
        saved.clean()
    assert steps_in(folder) == [1, 2]
    assert not inside.exists()


def test_reading_changes_nothing(pair):
    before = {path: path.stat().st_mtime_ns for path in pair.rglob("*")}
    checkpoints.read_variables(pair)
    assert {path: path.stat().st_mtime_ns for path in pair.rglob("*")} == before


def test_a_checkpoint_of_an_older_version(tmp_path, capsys):
    """As Orbax's own manager writes it, which older versions used: no manifest."""
    state = make_state(7)
    stored = {**vars(state), "average": None}
    del stored["ema"]
    with ocp.CheckpointManager(tmp_path) as manager:
        notes = {"best": 7, "progress": {"best": 0.5, "stopping": None, "waited": 0}}
        manager.save(
            7,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(stored), notes=ocp.args.JsonSave(notes)
            ),
        )
    with Checkpoints(tmp_path) as saved:
        assert (saved.latest, saved.best) == (7, 7)
        restored, progress = saved.restore_latest(LIKE)
        assert "without checksums" in capsys.readouterr().err
        assert progress == notes["progress"]
        np.testing.assert_array_equal(restored.opt_state["mean"], state.opt_state["mean"])
        saved.save(make_state(8), progress, best=False)
    assert "files" in json.loads((tmp_path / "8" / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["exp [1]", "back\\slash", "per%cent #1?", "ünïcode"])
def test_folders_with_odd_names(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    save(folder, 1, best=(1,))
    with Checkpoints(folder) as saved:
        assert int(saved.restore_latest(LIKE)[0].step) == 1
    variables, _ = checkpoints.read_variables(folder)
    assert variables["params"]["dense"]["kernel"][0, 0] == 1000


# Orbax leaves an event loop behind when a save fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_costs_the_new_checkpoint_only(tmp_path):
    """The limit on the size of a file stands for a full disk."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved = Checkpoints(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        saved.save(make_state(2), {}, best=False)
        with pytest.raises(InputError, match="2: expected a place that can be written") as error:
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saved.__exit__(None)
    assert "\n" not in str(error.value)
    assert steps_in(tmp_path) == [1]
    with Checkpoints(tmp_path) as again:
        assert int(again.restore_latest(LIKE)[0].step) == 1
