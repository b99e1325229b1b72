import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dlsr import InputError, evaluate_scores
from dlsr.calibration.metrics import fpr_at_tpr

numbers = st.integers(-5, 5).map(float)


def test_metrics_of_an_example():
    metrics = evaluate_scores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0]))
    assert metrics.auroc == pytest.approx(7 / 8)
    assert metrics.fpr95_id_positive == pytest.approx(0.5)  # 4 must be accepted, so 3.5 is
    assert metrics.fpr95_ood_positive == pytest.approx(0.25)  # 3.5 must be rejected, so 4 is
    assert metrics.aupr_ood == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_metrics_of_perfect_and_reversed_scores():
    low, high = np.arange(20.0), np.arange(20.0) + 100
    perfect, worst = evaluate_scores(low, high), evaluate_scores(high, low)
    assert (perfect.auroc, perfect.aupr_id, perfect.aupr_ood) == (1, 1, 1)
    assert (perfect.fpr95_id_positive, perfect.fpr95_ood_positive) == (0, 0)
    assert (worst.auroc, worst.fpr95_id_positive, worst.fpr95_ood_positive) == (0, 1, 1)


def test_equal_scores_give_the_metrics_of_chance():
    metrics = evaluate_scores(np.zeros(5), np.zeros(7))
    assert metrics.auroc == 0.5
    assert metrics.fpr95_id_positive == 1


@given(st.lists(numbers, min_size=1), st.lists(numbers, min_size=1), st.floats(0.05, 1))
def test_fpr_at_tpr_is_the_smallest_rate_that_accepts_enough_positives(positive, negative, tpr):
    positive, negative = np.array(positive), np.array(negative)
    cuts = np.unique(positive)
    best = min(np.mean(negative >= cut) for cut in cuts if np.mean(positive >= cut) >= tpr - 1e-9)
    assert fpr_at_tpr(positive, negative, tpr) == pytest.approx(best)


def test_auroc_has_ood_as_the_positive_class():
    random = np.random.default_rng(0)
    inside, outside = random.standard_normal(50), random.standard_normal(70) + 1
    expected = roc_auc_score([0] * 50 + [1] * 70, np.concatenate([inside, outside]))
    assert evaluate_scores(inside, outside).auroc == pytest.approx(expected)


@pytest.mark.parametrize(("inside", "outside"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_empty_or_infinite_scores_are_refused(inside, outside):
    with pytest.raises(InputError):
        evaluate_scores(np.array(inside), np.array(outside))
