import numpy as np
import pytest
from scipy.stats import false_discovery_control

from dlsr import SettingsError
from dlsr.calibration.conformal import p_values
from dlsr.calibration.fdr import rejected, why_none


def mixture(random, inside, outside, calibration):
    scores = np.concatenate([random.standard_normal(inside), random.normal(4, 1, outside)])
    return p_values(scores, random.standard_normal(calibration)), np.arange(inside + outside) >= inside


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_few_of_those_rejected_are_in_distribution_on_average(rate):
    random = np.random.default_rng(0)
    shares, found = [], []
    for _ in range(200):
        values, is_ood = mixture(random, 450, 50, 500)
        chosen = rejected(values, rate)
        shares.append((chosen & ~is_ood).sum() / max(chosen.sum(), 1))
        found.append((chosen & is_ood).sum() / 50)
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= rate + 2.6 * standard_error
    assert np.mean(shares) > rate / 2  # not by rejecting nothing
    assert np.mean(found) > 0.5


def test_nothing_is_rejected_in_most_sets_without_an_ood_image():
    random = np.random.default_rng(1)
    some = [rejected(mixture(random, 200, 0, 400)[0], 0.1).any() for _ in range(200)]
    assert np.mean(some) < 0.1 + 2.6 * np.sqrt(0.09 / 200)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_it_agrees_with_scipy(rate):
    random = np.random.default_rng(2)
    for outside in (0, 5, 60):
        values, _ = mixture(random, 60, outside, 997)
        np.testing.assert_array_equal(rejected(values, rate), false_discovery_control(values) <= rate)


def test_a_p_value_exactly_at_its_limit_is_rejected():
    assert rejected(np.array([0.3, 0.1 + 0.2]), 0.3).all()
    assert rejected(np.array([0.05, 0.9]), 0.1).tolist() == [True, False]


def test_unreadable_images_do_not_count():
    values = np.array([0.02, 0.9, 0.8, 0.7])
    assert rejected(values, 0.08).tolist() == [True, False, False, False]
    assert rejected(np.append(values, np.nan), 0.08).tolist() == [True, False, False, False, False]
    assert not rejected(np.array([np.nan]), 0.1).any()


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_a_rate_that_is_none_is_one_line(rate):
    with pytest.raises(SettingsError, match="false discovery rate must lie between 0 and 1"):
        rejected(np.array([0.5]), rate)


def test_it_is_told_when_calibration_images_are_too_few():
    smallest = 1 / 20
    values = np.append(np.full(3, smallest), np.full(97, 0.5))
    assert "unless 50 of 100 images have the smallest p-value there can be, 0.05, and 3 have it" in str(
        why_none(values, smallest, 0.1)
    )
    assert str(why_none(values, smallest, 0.01)).startswith("no image can be rejected: the smallest p-value")
    enough = np.append(np.full(50, smallest), np.full(50, 0.5))
    assert rejected(enough, 0.1).sum() == 50
    assert why_none(enough, smallest, 0.1) is None
    assert why_none(np.full(100, 0.5), 1e-6, 0.1) is None  # one far image would be rejected
