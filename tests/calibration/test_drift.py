import numpy as np
import pytest
from scipy.stats import kstest

from dlsr import InputError, SettingsError
from dlsr.calibration.conformal import p_values
from dlsr.calibration.drift import Martingale, capital, drift, one_of_each_group, stream_test, window_test, windows
from dlsr.calibration.two_samples import Sample


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


def sample(seed, count, share=0.5):
    """Images of two classes that lie symmetrically, the second with this share: the mix leaves scores as they are."""
    random = np.random.default_rng(seed)
    sides = np.where(random.random(count) < share, 3.0, -3.0)
    z0 = (random.standard_normal((count, 8)) + sides[:, None]).astype(np.float32)
    return Sample(z0, {"brightness": random.random(count)}), np.linalg.norm(z0, axis=1)


def test_with_reference_images_too_drift_is_reported_with_at_most_the_probability_alpha():
    found = []
    for i in range(100):
        (before, _), (after, scores) = sample(i, 40), sample(1000 + i, 40)
        report = drift(scores, sample(2000 + i, 100)[1], alpha=0.3, samples=(before, after), stream=i % 2 == 0)
        assert report.drifted == bool(report.drifted_in)
        found.append(report.drifted)
    assert np.mean(found) < 0.4


def test_a_changed_mix_with_equal_scores_is_seen_in_the_features_only():
    (before, _), (after, scores) = sample(0, 200), sample(1, 150, share=0.85)
    calibration = sample(2, 300)[1]
    assert not drift(scores, calibration).drifted
    report = drift(scores, calibration, samples=(before, after))
    assert report.drifted_in == ["features"]
    assert report.first_changed is None
    assert (report.reference.images, report.reference.reference_images) == (150, 200)


def test_properties_that_moved_are_named():
    (before, _), (after, scores) = sample(0, 100), sample(1, 100)
    darker = Sample(after.z0, {"brightness": after.properties["brightness"] / 2})
    report = drift(scores, sample(2, 300)[1], samples=(before, darker))
    assert report.drifted_in == ["brightness"]
    assert [test.name for test in report.reference.moved] == ["brightness"]


def test_each_test_gets_a_third_of_alpha_if_there_are_reference_images():
    (before, _), (after, _) = sample(0, 100), sample(1, 100)
    calibration = normal(0, 200)
    scores = next(
        shifted
        for shift in np.linspace(0, 1, 200)
        if 0.02 < window_test(shifted := normal(1, 100, shift), calibration).p_value < 0.04
    )
    assert drift(scores, calibration, alpha=0.05).drifted_in == ["scores"]
    assert "scores" not in drift(scores, calibration, alpha=0.05, samples=(before, after)).drifted_in
    assert "scores" in drift(scores, calibration, alpha=0.15, samples=(before, after)).drifted_in


def test_calibration_images_of_one_group_count_as_one():
    def grouped(seed):
        random = np.random.default_rng(seed)
        return np.repeat(random.normal(size=60), 10) + 0.1 * random.normal(size=600)

    groups = np.random.default_rng(0).permutation(60).repeat(10)
    found = [drift(normal(i, 200), grouped(1000 + i), alpha=0.1, groups=groups).drifted for i in range(200)]
    assert np.mean(found) < 0.16
    assert drift(normal(0, 200, 1.0), grouped(0), alpha=0.01, groups=groups).drifted


def test_one_score_of_each_group_is_drawn_in_order():
    scores, groups = np.arange(9.0), np.array([5, 5, 5, 1, 1, 8, 7, 7, 7])
    drawn = np.array([one_of_each_group(scores, groups, seed) for seed in range(50)])
    assert (groups[drawn.astype(int)] == [5, 1, 8, 7]).all()
    assert set(drawn[:, 0]) == {0, 1, 2}
    np.testing.assert_array_equal(one_of_each_group(scores, np.arange(9)), scores)


def test_too_few_images_or_reference_images_to_compare_are_refused():
    (few, _), (enough, scores) = sample(0, 19), sample(1, 20)
    with pytest.raises(InputError, match="19 reference images are too few to compare; give 20 or more"):
        drift(scores, normal(0, 50), samples=(few, enough))
    with pytest.raises(InputError, match="19 images are too few to compare"):
        drift(scores, normal(0, 50), samples=(enough, few))
    with pytest.raises(SettingsError, match="allow a higher alpha"):
        drift(scores, normal(0, 50), alpha=0.0001, samples=(enough, enough))
