import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlsr import SettingsError, TooFewImagesError, p_values, threshold
from dlsr.calibration.conformal import check_calibration_size, layer_scale

numbers = st.integers(-5, 5).map(float)


@given(st.lists(numbers, min_size=1, max_size=60), st.lists(numbers, min_size=1), st.floats(0.02, 0.98))
def test_the_threshold_and_the_p_values_give_the_same_verdicts(calibration, scores, rate):
    calibration, scores = np.array(calibration), np.array(scores)
    p = p_values(scores, calibration)
    assert ((p > 0) & (p <= 1)).all()
    try:
        cut = threshold(calibration, rate)
    except TooFewImagesError:
        assert (p > rate).all()
    else:
        np.testing.assert_array_equal(scores > cut, p <= rate + 1e-9)


def test_p_values_of_an_example():
    np.testing.assert_allclose(p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])), [1, 0.75, 0.25])


def test_the_false_alarm_rate_holds_on_average_over_calibration_datasets():
    random = np.random.default_rng(0)
    calibration, scores = random.standard_normal((4000, 39)), random.standard_normal((4000, 200))
    rates = [np.mean(new > threshold(old, 0.05)) for new, old in zip(scores, calibration, strict=True)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.002)
    # The rate of a given calibration dataset varies: see the module's docstring.
    assert np.mean(np.array(rates) > 0.05) > 0.3
    assert np.std(rates) == pytest.approx(np.sqrt(0.05 / 39), rel=0.2)


@pytest.mark.parametrize(("rate", "smallest"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3)])
def test_the_smallest_number_of_calibration_images(rate, smallest):
    check_calibration_size(smallest, rate)
    assert threshold(np.arange(float(smallest)), rate) == smallest - 1
    for check in (check_calibration_size, lambda n, rate: threshold(np.zeros(n), rate)):
        with pytest.raises(TooFewImagesError, match=f"at least {smallest} calibration images, got {smallest - 1}"):
            check(smallest - 1, rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1, 2])
def test_rates_outside_0_to_1_are_refused(rate):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        threshold(np.zeros(100), rate)


def test_the_scale_of_a_layer_is_never_zero():
    mean, std = layer_scale(np.array([[1.0, 2.0], [3.0, 2.0]], np.float32))
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(std, [1, 0], atol=1e-9)
    assert (std > 0).all()
