"""Bootstrap intervals hold the truth as often as they say, if lesions are drawn, not images."""

import numpy as np
import pytest
import scipy.stats

from jaxattn.evaluation import uncertainty


@pytest.mark.parametrize(("clustered", "covers"), [(True, True), (False, False)])
def test_coverage_over_lesions(clustered, covers):
    """95 ± 2% of intervals of accuracy hold the truth; ignoring lesions, far fewer.

    Lesions have four images, all right or wrong together in three of four cases.
    """
    rng = np.random.default_rng(3)
    truth, lesions, images, trials, held = 0.7, 120, 4, 1000, 0
    number = np.repeat(np.arange(lesions), images)
    for trial in range(trials):
        alike = rng.random(lesions) < 0.75
        whole = rng.random(lesions) < truth
        single = rng.random((lesions, images)) < truth
        right = np.where(alike[:, None], whole[:, None], single).ravel()
        drawn_over = number if clustered else np.arange(len(number))
        means = np.concatenate(
            [
                weights @ right / weights.sum(1)
                for weights in uncertainty.draws(drawn_over, 400, seed=trial)
            ]
        )
        low, high = uncertainty.interval(means)
        held += low <= truth <= high
    if covers:
        assert 0.93 <= held / trials <= 0.97
    else:
        assert held / trials < 0.85


def test_coverage_of_an_auc_over_lesions():
    """The truth is Φ(1 / √2); both images of a lesion share most of its score."""
    rng = np.random.default_rng(5)
    truth, trials, held = scipy.stats.norm.cdf(1 / np.sqrt(2)), 600, 0
    number = np.repeat(np.arange(240), 2)
    positive = number % 2 == 0
    for trial in range(trials):
        shared = rng.normal(size=240)[number] * np.sqrt(0.7)
        scores = shared + rng.normal(size=480) * np.sqrt(0.3) + positive
        ranking = uncertainty.Ranking(positive, scores)
        values = np.concatenate(
            [ranking.auc(weights) for weights in uncertainty.draws(number, 400, seed=trial)]
        )
        low, high = uncertainty.interval(values)
        held += low <= truth <= high
    assert 0.93 <= held / trials <= 0.97
