import numpy as np
import pytest
from scipy.stats import kstest

from dlsr import InputError, SettingsError
from dlsr.calibration.conformal import p_values
from dlsr.calibration.drift import Martingale, capital, drift, stream_test, window_test, windows


def normal(seed, count, shift=0.0):
    return np.random.default_rng(seed).normal(shift, size=count)


def test_id_images_are_called_drifted_no_more_often_than_alpha_says():
    # The calibration images are few and the same for all, which breaks tests that take p-values for independent.
    found = [drift(normal(i, 200), normal(1000 + i, 100), alpha=0.1, window=50).drifted for i in range(300)]
    assert np.mean(found) < 0.14
    streams = [stream_test(normal(i, 200), normal(1000 + i, 100), 0.1).alarm is not None for i in range(200)]
    assert np.mean(streams) < 0.13


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_shift_either_way_is_drift(shift):
    calibration = normal(0, 500)
    told = drift(normal(1, 100, shift), calibration, alpha=0.01)
    assert told.drifted
    assert told.first_changed is None  # a set has no order
    assert (told.windows[0].mean_p_value < 0.5) == (shift > 0)
    assert not drift(normal(2, 100), calibration, alpha=0.01).drifted


def test_the_change_is_found():
    calibration = normal(0, 500)
    scores = np.concatenate([normal(1, 300), normal(2, 200, 1.5)])
    stream = stream_test(scores, calibration, 0.01)
    assert 300 < stream.alarm < 360
    assert 280 <= stream.changed <= 315
    told = drift(scores, calibration, alpha=0.01, window=100)
    assert [one.start for one in told.windows] == [0, 100, 200, 300, 400]
    assert told.first_changed == 300
    assert (
        drift(scores, calibration, alpha=0.01, stream=True).first_changed
        == stream_test(scores, calibration, 0.005).changed
    )


def test_online_p_values_are_uniform_even_with_ties():
    calibration = np.round(normal(0, 200), 1)
    martingale = Martingale(calibration)
    found = [martingale.update(score) for score in np.round(normal(1, 2000), 1)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert martingale.log10 < 1


def test_the_martingale_is_the_mean_of_its_bets():
    calibration, scores = normal(0, 50), normal(1, 5)
    martingale = Martingale(calibration)
    ps = [martingale.update(score) for score in scores]
    stakes, expected = np.full(3, 1 / 3), []
    for p in ps:
        stakes = 0.99 * stakes + 0.01 * stakes.sum() / 3
        stakes = stakes * (1 + np.array([-1, 0, 1]) * (p - 0.5))
        expected.append(np.log10(stakes.sum()))
    np.testing.assert_allclose(list(capital(scores, calibration)), expected, atol=1e-12)


def test_mean_p_value_is_that_of_the_conformal_p_values():
    calibration, scores = normal(0, 99), normal(1, 40)
    # Without ties the smoothed one is half a rank below.
    expected = p_values(scores, calibration).mean() - 0.5 / 100
    assert window_test(scores, calibration).mean_p_value == pytest.approx(expected)


def test_windows_cover_everything():
    found = windows(normal(0, 110), normal(1, 50), 50)
    assert [(one.start, one.images) for one in found] == [(0, 50), (50, 60)]
    assert [(one.start, one.images) for one in windows(normal(0, 30), normal(1, 50), 50)] == [(0, 30)]


def test_what_users_get_wrong():
    with pytest.raises(InputError, match="5 images are too few to tell drift; give 20 or more"):
        drift(normal(0, 5), normal(1, 50))
    with pytest.raises(SettingsError, match="alpha must lie between 0 and 1"):
        drift(normal(0, 50), normal(1, 50), alpha=1)
    with pytest.raises(SettingsError, match="at least 20 images, got 5"):
        drift(normal(0, 50), normal(1, 50), window=5)
