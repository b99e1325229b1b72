import numpy as np
import pytest
from scipy.stats import kstest

from dlsr import InputError, SettingsError
from dlsr.calibration.conformal import p_values
from dlsr.calibration.drift import Martingale, capital, drift, stream_test, window_test, windows


def normal(seed, count, shift=0.0):
    return np.random.default_rng(seed).normal(shift, size=count)


def test_drift_is_reported_for_id_images_with_at_most_the_probability_alpha():
    # With so few calibration images a test that assumes independent p-values would report drift too often.
    found = [drift(normal(i, 200), normal(1000 + i, 100), alpha=0.1, window=50).drifted for i in range(300)]
    assert np.mean(found) < 0.14
    streams = [stream_test(normal(i, 200), normal(1000 + i, 100), 0.1).alarm is not None for i in range(200)]
    assert np.mean(streams) < 0.13


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_higher_and_lower_scores_are_both_drift(shift):
    calibration = normal(0, 500)
    report = drift(normal(1, 100, shift), calibration, alpha=0.01)
    assert report.drifted
    assert report.first_changed is None  # the order of the images is not known
    assert (report.windows[0].mean_p_value < 0.5) == (shift > 0)
    assert not drift(normal(2, 100), calibration, alpha=0.01).drifted


def test_the_first_image_after_the_change_is_found():
    calibration = normal(0, 500)
    scores = np.concatenate([normal(1, 300), normal(2, 200, 1.5)])
    stream = stream_test(scores, calibration, 0.01)
    assert 300 < stream.alarm < 360
    assert 280 <= stream.changed <= 315
    report = drift(scores, calibration, alpha=0.01, window=100)
    assert [window.start for window in report.windows] == [0, 100, 200, 300, 400]
    assert report.first_changed == 300
    assert (
        drift(scores, calibration, alpha=0.01, stream=True).first_changed
        == stream_test(scores, calibration, 0.005).changed
    )


def test_p_values_of_the_martingale_are_uniform_with_ties():
    calibration = np.round(normal(0, 200), 1)
    martingale = Martingale(calibration)
    found = [martingale.update(score) for score in np.round(normal(1, 2000), 1)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert martingale.log10 < 1


def test_the_martingale_is_the_capital_of_the_simple_jumper():
    calibration, scores = normal(0, 50), normal(1, 5)
    martingale = Martingale(calibration)
    ps = [martingale.update(score) for score in scores]
    stakes, expected = np.full(3, 1 / 3), []
    for p in ps:
        stakes = 0.99 * stakes + 0.01 * stakes.sum() / 3
        stakes = stakes * (1 + np.array([-1, 0, 1]) * (p - 0.5))
        expected.append(np.log10(stakes.sum()))
    np.testing.assert_allclose(list(capital(scores, calibration)), expected, atol=1e-12)


def test_the_mean_p_value_is_that_of_smoothed_conformal_p_values():
    calibration, scores = normal(0, 99), normal(1, 40)
    # Without ties a smoothed p-value is lower by half a rank.
    expected = p_values(scores, calibration).mean() - 0.5 / 100
    assert window_test(scores, calibration).mean_p_value == pytest.approx(expected)


def test_windows_have_all_images_and_none_is_too_short():
    found = windows(normal(0, 110), normal(1, 50), 50)
    assert [(window.start, window.images) for window in found] == [(0, 50), (50, 60)]
    (only,) = windows(normal(0, 30), normal(1, 50), 50)
    assert (only.start, only.images) == (0, 30)


def test_too_few_images_and_impossible_settings_are_refused():
    with pytest.raises(InputError, match="5 images are too few to detect drift; give 20 or more"):
        drift(normal(0, 5), normal(1, 50))
    with pytest.raises(SettingsError, match="alpha must lie between 0 and 1"):
        drift(normal(0, 50), normal(1, 50), alpha=1)
    with pytest.raises(SettingsError, match="at least 20 images, got 5"):
        drift(normal(0, 50), normal(1, 50), window=5)
