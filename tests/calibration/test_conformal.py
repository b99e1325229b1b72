import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dlsr import InputError, SettingsError, TooFewImagesError, evaluate_scores, p_values, threshold
from dlsr.calibration.metrics import fpr_at_tpr

numbers = st.integers(-5, 5).map(float)


@given(st.lists(numbers, min_size=1, max_size=60), st.lists(numbers, min_size=1), st.floats(0.02, 0.98))
def test_verdict_by_threshold_is_verdict_by_p_value(calibration, scores, rate):
    calibration, scores = np.array(calibration), np.array(scores)
    p = p_values(scores, calibration)
    assert ((p > 0) & (p <= 1)).all()
    try:
        cut = threshold(calibration, rate)
    except TooFewImagesError:
        assert (p > rate).all()
    else:
        np.testing.assert_array_equal(scores > cut, p <= rate + 1e-9)


def test_p_values_by_hand():
    np.testing.assert_allclose(p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])), [1, 0.75, 0.25])


def test_false_alarms_keep_to_the_rate():
    random = np.random.default_rng(0)
    alarms = [np.mean(random.standard_normal(50) > threshold(random.standard_normal(39), 0.05)) for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.005)


def test_too_few_for_the_rate_says_how_many():
    with pytest.raises(TooFewImagesError, match="at least 99"):
        threshold(np.zeros(98), 0.01)
    assert threshold(np.arange(99.0), 0.01) == 98
    assert threshold(np.arange(19.0), 0.05) == 18


@pytest.mark.parametrize("rate", [0.0, 1.0, -1, 2])
def test_impossible_rates(rate):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        threshold(np.zeros(100), rate)


def test_metrics_by_hand():
    metrics = evaluate_scores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0]))
    assert metrics.auroc == pytest.approx(7 / 8)
    assert metrics.fpr95_id_positive == pytest.approx(0.5)  # 3.5 is accepted with all ID up to 4
    assert metrics.fpr95_ood_positive == pytest.approx(0.25)  # 4 is refused with all OOD from 3.5
    assert metrics.aupr_ood == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_metrics_of_perfect_and_reversed_scores():
    low, high = np.arange(20.0), np.arange(20.0) + 100
    perfect, worst = evaluate_scores(low, high), evaluate_scores(high, low)
    assert (perfect.auroc, perfect.aupr_id, perfect.aupr_ood) == (1, 1, 1)
    assert (perfect.fpr95_id_positive, perfect.fpr95_ood_positive) == (0, 0)
    assert (worst.auroc, worst.fpr95_id_positive, worst.fpr95_ood_positive) == (0, 1, 1)


def test_equal_scores_are_chance():
    metrics = evaluate_scores(np.zeros(5), np.zeros(7))
    assert metrics.auroc == 0.5
    assert metrics.fpr95_id_positive == 1


@given(st.lists(numbers, min_size=1), st.lists(numbers, min_size=1), st.floats(0.05, 1))
def test_fpr_at_tpr_keeps_the_positives(positive, negative, tpr):
    positive, negative = np.array(positive), np.array(negative)
    cuts = np.unique(positive)
    best = min(np.mean(negative >= cut) for cut in cuts if np.mean(positive >= cut) >= tpr - 1e-9)
    assert fpr_at_tpr(positive, negative, tpr) == pytest.approx(best)


def test_auroc_is_that_of_scikit_learn_with_ood_positive():
    random = np.random.default_rng(0)
    inside, outside = random.standard_normal(50), random.standard_normal(70) + 1
    expected = roc_auc_score([0] * 50 + [1] * 70, np.concatenate([inside, outside]))
    assert evaluate_scores(inside, outside).auroc == pytest.approx(expected)


@pytest.mark.parametrize(("inside", "outside"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_metrics_of_nothing(inside, outside):
    with pytest.raises(InputError):
        evaluate_scores(np.array(inside), np.array(outside))
