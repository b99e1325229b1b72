import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dlsr import FeatureError, SettingsError, TooFewImagesError, p_values, threshold
from dlsr.calibration.conformal import check_calibration_size, layer_scale

numbers = st.integers(-5, 5).map(float)


@given(
    st.lists(st.tuples(numbers, st.integers(0, 20)), min_size=1, max_size=60),
    st.lists(numbers, min_size=1),
    st.floats(0.02, 0.98),
    st.sampled_from([None, 0.5, 0.9]),
    st.booleans(),
    st.booleans(),
)
def test_the_threshold_and_the_p_values_give_the_same_verdicts(
    calibration, scores, rate, confidence, grouped, left_out
):
    calibration, scores = np.array(calibration), np.array(scores)
    calibration, groups = calibration[:, 0], calibration[:, 1].astype(int) if grouped else None
    p = p_values(scores, calibration, groups, confidence, left_out)
    assert ((p > 0) & (p <= 1)).all()
    try:
        cut = threshold(calibration, rate, groups, confidence, left_out)
    except TooFewImagesError:
        assert (p > rate).all()
    else:
        np.testing.assert_array_equal(scores > cut, p <= rate + 1e-9)


def test_p_values_of_an_example():
    np.testing.assert_allclose(p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])), [1, 0.75, 0.25])


def test_no_p_value_is_above_1_though_the_shares_of_a_group_are_rounded():
    groups = np.repeat([0, 1], [1, 21])
    assert p_values(np.array([-1.0]), np.arange(22.0), groups)[0] == 1


def test_the_p_value_is_at_most_the_rate_where_the_verdict_is_ood():
    """Sums of groups' shares were a little more than whole numbers."""
    random = np.random.default_rng(0)
    for _ in range(300):
        groups = np.repeat(np.arange(39), random.integers(1, 12, 39))
        scores = random.normal(size=39)[groups]
        for k in range(1, 5):
            np.testing.assert_array_equal(
                p_values(scores, scores, groups) <= k / 40, scores > threshold(scores, k / 40, groups)
            )


def test_scores_that_are_no_numbers_have_no_p_value():
    assert np.isnan(p_values(np.array([np.nan, 0.0]), np.arange(50.0))).tolist() == [True, False]
    for function in (lambda scores: threshold(scores, 0.05), lambda scores: p_values(np.zeros(1), scores)):
        for bad in (np.nan, np.inf):
            with pytest.raises(FeatureError, match="must be finite"):
                function(np.append(np.arange(50.0), bad))


def test_the_false_alarm_rate_holds_on_average_over_calibration_datasets():
    random = np.random.default_rng(0)
    calibration, scores = random.standard_normal((4000, 39)), random.standard_normal((4000, 200))
    rates = [np.mean(new > threshold(old, 0.05)) for new, old in zip(scores, calibration, strict=True)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.002)
    # The rate of a given calibration dataset varies: see the module's docstring.
    assert np.mean(np.array(rates) > 0.05) > 0.3
    assert np.std(rates) == pytest.approx(np.sqrt(0.05 / 39), rel=0.2)


def test_each_group_counts_as_one_image():
    calibration, groups = np.array([1.0, 5.0, 5.0, 5.0, 3.0, 7.0]), np.array([0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose(
        p_values(np.array([9.0, 6.0, 4.0, 2.0]), calibration, groups), [1 / 4, 1.5 / 4, 2.5 / 4, 3 / 4]
    )
    alone = np.arange(6)[::-1]
    scores = np.linspace(0, 9, 40)
    np.testing.assert_allclose(p_values(scores, calibration, alone), p_values(scores, calibration))


def drawn_groups(random, count, largest=8):
    """Scores of groups that differ from each other more than the images within them."""
    sizes = random.integers(1, largest, count)
    groups = np.repeat(np.arange(count), sizes)
    return random.standard_normal(count)[groups] + 0.3 * random.standard_normal(len(groups)), groups


def rate_above(cut):
    return norm.sf(cut / np.sqrt(1.09))


def test_the_false_alarm_rate_holds_for_images_of_new_groups():
    random = np.random.default_rng(0)
    rates = [
        rate_above(threshold(scores, 0.05, groups))
        for scores, groups in (drawn_groups(random, 39) for _ in range(1000))
    ]
    assert 0.035 < np.mean(rates) < 0.053


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("grouped", [False, True])
def test_with_a_confidence_the_rate_holds_for_that_share_of_calibration_datasets(confidence, grouped):
    random = np.random.default_rng(0)
    rates = []
    for _ in range(600):
        scores, groups = drawn_groups(random, 200, largest=8 if grouped else 2)
        rates.append(rate_above(threshold(scores, 0.05, groups, confidence)))
    above = np.mean(np.array(rates) > 0.05)
    assert above <= 1 - confidence + 3 * np.sqrt(confidence * (1 - confidence) / 600)
    # It cannot be exact: ranks are whole numbers.
    assert above > 0.2 * (1 - confidence)


@pytest.mark.parametrize(("rate", "confidence", "smallest"), [(0.05, 0.95, 59), (0.01, 0.9, 230)])
def test_the_smallest_number_of_calibration_images_with_a_confidence(rate, confidence, smallest):
    assert threshold(np.arange(float(smallest)), rate, confidence=confidence) == smallest - 1
    with pytest.raises(TooFewImagesError, match=f"with a confidence of {confidence} needs at least {smallest} cal"):
        threshold(np.zeros(smallest - 1), rate, confidence=confidence)


@pytest.mark.parametrize(("rate", "confidence", "smallest"), [(0.05, 0.95, 68), (0.01, 0.9, 253), (0.95, 0.95, 2)])
def test_it_is_larger_for_images_that_were_left_out_in_turn(rate, confidence, smallest):
    assert threshold(np.arange(float(smallest)), rate, None, confidence, left_out=True) == smallest - 1
    with pytest.raises(TooFewImagesError, match=f"needs at least {smallest} calibration images"):
        threshold(np.zeros(smallest - 1), rate, None, confidence, left_out=True)


@pytest.mark.slow
def test_images_that_were_left_out_in_turn_may_depend_on_each_other():
    """So much that the standard deviation of the rate is larger by a fifth."""
    random = np.random.default_rng(0)
    above = {False: 0, True: 0}
    for _ in range(2000):
        scores = random.standard_normal(400) + 0.0567 * random.standard_normal()
        for left_out in above:
            above[left_out] += norm.sf(threshold(scores, 0.1, None, 0.95, left_out)) > 0.1
    assert above[True] <= 0.05 * 2000
    assert above[False] > 0.055 * 2000


def test_without_a_confidence_it_does_not_matter_whether_images_were_left_out_in_turn():
    calibration, scores = np.random.default_rng(0).standard_normal((2, 50))
    for groups in (None, np.arange(50) // 2):
        np.testing.assert_array_equal(
            p_values(scores, calibration, groups), p_values(scores, calibration, groups, left_out=True)
        )


def test_too_few_groups_are_refused_however_many_images():
    with pytest.raises(TooFewImagesError, match="needs at least 19 groups of calibration images, got 10"):
        threshold(np.zeros(1000), 0.05, np.arange(1000) % 10)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, 2])
def test_confidences_outside_0_to_1_are_refused(confidence):
    with pytest.raises(SettingsError, match="confidence must lie between 0 and 1"):
        threshold(np.zeros(100), 0.05, confidence=confidence)


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
