import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxattn import figures
from jaxattn.data.crops import Crops
from jaxattn.errors import InputError
from jaxattn.report import loading
from tests.unit.report_runs import make_evaluated


@pytest.mark.parametrize("count", [4, 5, 9, 16])
def test_weights_of_crops_come_back_from_their_means(count):
    crops, size = Crops("ordered", count=count, size=224), (450, 600)
    weights = np.random.default_rng(0).random(count, dtype=np.float32)
    cells = np.asarray(crops.on_image(jnp.asarray(weights)[None, :, None, None], *size))[0]
    np.testing.assert_allclose(figures.weights_of_crops(cells, crops, size), weights, atol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_evaluated(tmp_path_factory.mktemp("figures") / "run")


def test_figures_are_drawn_on_request(run, tmp_path, command):
    for name in ("maps", "learning", "sweep"):
        out = tmp_path / f"{name}.png"
        status, printed, _ = command(figures, str(run), f"--figure={name}", f"--out={out}")
        assert (status, printed.strip()) == (0, f"written: {out}")
        with Image.open(out) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 20
    status, _, err = command(figures, str(run), "--figure=crops", f"--out={out}")
    assert status == 2
    assert "expected an evaluation with a map patch_attention_..., got none" in err
    with pytest.raises(InputError, match=r"did you mean 'maps'"):
        figures.draw([run], "map", out)
    with pytest.raises(InputError, match=r"ends in \.png, \.pdf or \.svg"):
        figures.draw([run], "maps", tmp_path / "figure.doc")


def test_crops_with_larger_weights_have_brighter_borders(run):
    loaded = loading.load(run)
    loaded.config.crops.update(strategy="ordered", count=4, size=32)
    weights = np.array([0.1, 0.2, 0.9, 0.4], np.float32)
    cells = np.asarray(
        Crops(**loaded.config.crops).on_image(jnp.asarray(weights)[None, :, None, None], 64, 64)
    )
    cases = {**loaded.cases, "map/patch_attention_end": np.repeat(cells, len(loaded.cases), 0)}
    figure = Figure()
    figures.crop_weights(figure, [loaded.__class__(**{**vars(loaded), "cases": cases})])
    patches = figure.axes[0].patches
    levels = [patch.get_edgecolor()[0] for patch in patches]
    assert levels == sorted(levels)
    assert patches[-1].get_xy() == pytest.approx((0, 128))  # the third: below, left; 256 pixels
