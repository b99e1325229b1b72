import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from dlsr import SCORES, Detector, p_values
from dlsr.sklearn import FeatureOutlierDetector, TooFewSamplesWarning
from shared import small


def adapter_for(score, changes=(), **parameters):
    settings = small(score, **dict(changes))
    return FeatureOutlierDetector(settings.pop("score"), settings=settings, **parameters)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are slowed down by threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def mahalanobis(features):
    return FeatureOutlierDetector("mahalanobis").fit(features)


@pytest.mark.filterwarnings("ignore::dlsr.sklearn.TooFewSamplesWarning")
@parametrize_with_checks([FeatureOutlierDetector(), FeatureOutlierDetector("mahalanobis")])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("score", sorted(SCORES.keys() - {"mahalanobis", "local"}))
def test_every_score_passes_check_estimator(score):
    check_estimator(adapter_for(score, {"width": 8, "blocks": 1}))


@pytest.mark.parametrize("score", sorted(SCORES))
def test_scores_are_the_negative_of_the_detectors(score, features):
    adapter = adapter_for(score, channels=(4, 8), false_alarm_rate=0.1, random_state=3).fit(features)
    detector = Detector(score=score, false_alarm_rate=0.1, group_by="none", seed=3, **adapter.settings)
    detector.fit_features(features, (4, 8))
    new = np.concatenate([features[:20], 3 * features[20:40]])
    np.testing.assert_allclose(-adapter.score_samples(new), detector.score_features(new), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(-adapter.calibration_scores_, detector.calibration_scores_, rtol=1e-4, atol=1e-5)
    assert -adapter.offset_ == pytest.approx(detector.threshold_, rel=1e-4, abs=1e-5)


def test_outliers_are_negative_and_inliers_positive(mahalanobis, features):
    assert mahalanobis.predict([np.zeros(12), np.full(12, 9.0)]).tolist() == [1, -1]
    decision = mahalanobis.decision_function(features)
    np.testing.assert_array_equal(mahalanobis.predict(features), np.where(decision < 0, -1, 1))
    np.testing.assert_allclose(decision, mahalanobis.score_samples(features) - mahalanobis.offset_)


@pytest.mark.filterwarnings("ignore::dlsr.sklearn.TooFewSamplesWarning")
def test_fewer_samples_than_the_score_needs_are_a_value_error():
    with pytest.raises(ValueError, match="needs 5 training images, got 2"):
        FeatureOutlierDetector("local").fit([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("score", ["local", "knn", "mahalanobis"])
def test_one_group_warns_and_takes_the_quantile(features, score):
    with pytest.warns(TooFewSamplesWarning, match=r"200 samples in 1 groups are too few"):
        adapter = FeatureOutlierDetector(score).fit(features[:200], groups=[0] * 200)
    assert np.mean(adapter.predict(features[:200]) == -1) <= 0.05


def test_the_false_alarm_rate_holds_on_average():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(100):
        adapter = FeatureOutlierDetector("mahalanobis", false_alarm_rate=0.1).fit(rng.normal(size=(100, 3)))
        rates.append(np.mean(adapter.predict(rng.normal(size=(500, 3))) == -1))
    # The standard deviation of one rate is about sqrt(0.1 * 0.9 / 11) = 0.09, so of the mean about 0.009.
    assert 0.06 < np.mean(rates) < 0.13


def test_calibration_scores_give_conformal_p_values(mahalanobis, features):
    p = p_values(-mahalanobis.score_samples(features), -mahalanobis.calibration_scores_)
    np.testing.assert_array_equal(mahalanobis.predict(features) == -1, p <= 0.05)


def test_too_few_samples_warn_and_take_the_quantile_of_the_training_scores(features):
    with pytest.warns(TooFewSamplesWarning, match="38 samples are too few"):
        adapter = FeatureOutlierDetector("mahalanobis", calibration="held-out").fit(features[:38])
    np.testing.assert_array_equal(adapter.calibration_scores_, adapter.score_samples(features[:38]))
    assert np.sum(adapter.predict(features[:38]) == -1) == 1  # at most 5 % of 38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureOutlierDetector("mahalanobis", calibration="held-out").fit(features[:39])


def test_leaving_samples_out_needs_fewer(features):
    with pytest.warns(TooFewSamplesWarning, match="19 samples are too few"):
        FeatureOutlierDetector("mahalanobis").fit(features[:19])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = FeatureOutlierDetector("mahalanobis").fit(features[:20])
    assert len(adapter.calibration_scores_) == 20


def test_fits_in_a_pipeline(features):
    pipeline = make_pipeline(StandardScaler(), FeatureOutlierDetector("knn")).fit(features)
    assert pipeline.predict([np.zeros(12), np.full(12, 9.0)]).tolist() == [1, -1]
    assert pipeline.decision_function(features).shape == (400,)
    assert set(np.unique(clone(pipeline).fit_predict(features))) == {-1, 1}


def test_grid_search_chooses_a_setting():
    # The smaller cluster has 40 samples: their 150th neighbours are in the other cluster, beyond the outliers.
    rng = np.random.default_rng(0)
    inliers = np.concatenate([rng.normal(0, 0.1, size=(200, 4)), rng.normal(3, 0.1, size=(40, 4))])
    outliers = rng.normal(1.5, 0.1, size=(40, 4))
    X = np.concatenate([inliers, inliers + 0.01, outliers])
    y = np.repeat([1, 1, -1], [240, 240, 40])
    fold = PredefinedSplit(np.repeat([-1, 0, 0], [240, 240, 40]))
    grid = {"settings": [{"neighbours": 5}, {"neighbours": 150}]}
    search = GridSearchCV(
        FeatureOutlierDetector("knn"),
        grid,
        scoring=make_scorer(roc_auc_score, response_method="decision_function"),
        cv=fold,
        refit=False,
    ).fit(X, y)
    assert search.best_params_ == {"settings": {"neighbours": 5}}
    assert search.best_score_ == 1
    assert min(search.cv_results_["mean_test_score"]) < 1


def test_a_sample_has_the_same_score_in_any_batch(features):
    adapter = adapter_for("mfsim").fit(features)
    alone = np.concatenate([adapter.score_samples(features[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(alone, adapter.score_samples(features)[:50])


def test_a_pickled_copy_scores_the_same(mahalanobis, features):
    copy = pickle.loads(pickle.dumps(mahalanobis))
    np.testing.assert_array_equal(copy.score_samples(features), mahalanobis.score_samples(features))


def test_names_of_a_data_frame_are_kept_and_checked(features):
    frame = pd.DataFrame(features, columns=[f"feature {i}" for i in range(12)])
    adapter = FeatureOutlierDetector("mahalanobis").fit(frame)
    assert list(adapter.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        adapter.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)], ids=["None", "RandomState"])
def test_a_random_state_that_is_no_number_varies_from_fit_to_fit(random_state, features):
    adapter = FeatureOutlierDetector("mahalanobis", random_state=random_state)
    assert adapter.fit(features).settings_.seed != adapter.fit(features).settings_.seed


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"score_name": "nothing"}, "unknown score 'nothing'; choose one of"),
        ({"preset": "nothing"}, "unknown preset 'nothing'"),
        ({"score_name": "knn", "settings": {"neighbours": 0}}, "neighbours"),
        ({"score_name": "knn", "settings": {"width": 8}}, "no setting 'width'"),
        ({"channels": (5, 6)}, r"channels \[5, 6\] do not add up to the 12 features"),
        ({"channels": (12, 0)}, "do not add up"),
        ({"false_alarm_rate": 0}, "false_alarm_rate must lie between 0 and 1, got 0"),
        ({"random_state": -1}, "seed"),
        ({"device": "nowhere"}, "cannot use device 'nowhere'"),
    ],
)
def test_bad_parameters_are_value_errors_at_fit(parameters, message, features):
    with pytest.raises(ValueError, match=message):
        FeatureOutlierDetector(**parameters).fit(features)


def test_scoring_before_fit_is_scikit_learns_error(features):
    with pytest.raises(NotFittedError):
        FeatureOutlierDetector().predict(features)


def test_importing_dlsr_does_not_import_scikit_learn():
    code = "import sys, dlsr; dlsr.Detector; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
