import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import LocalOutlierFactor

from baselines.tiny import TINY
from dlsr import FeatureError, InputError, NotFittedError, TooFewImagesError
from dlsr.baselines import make_detector
from dlsr.images.sources import open_images


def test_classifier_scores_agree_with_their_formulas(fitted, odd_folder):
    detector = fitted("msp")
    samples, _ = detector._read(open_images(odd_folder), None)
    logits = detector.network_(torch.from_numpy(samples)).detach()
    np.testing.assert_allclose(detector.score_samples(odd_folder), -logits.softmax(1).max(1).values, atol=1e-5)
    energy = fitted("energy")
    torch.testing.assert_close(energy.network_.weight, detector.network_.weight)
    np.testing.assert_allclose(energy.score_samples(odd_folder), -logits.logsumexp(1), atol=1e-4)
    dice = fitted("dice")
    head = dice.network_
    contribution = head.mean_feature * head.weight
    kept = torch.where(contribution > contribution.flatten().quantile(0.9), head.weight, 0.0)
    expected = -(torch.from_numpy(samples) @ kept.T + head.bias).logsumexp(1)
    np.testing.assert_allclose(dice.score_samples(odd_folder), expected.detach(), atol=1e-4)
    ash = fitted("ash-s")
    x = torch.from_numpy(samples)
    cut = x.sort(dim=1).values[:, round(x.shape[1] * 0.65)][:, None]
    pruned = torch.where(x >= cut, x, 0.0)
    shaped = pruned * torch.exp(x.sum(1) / pruned.sum(1))[:, None]
    np.testing.assert_allclose(
        ash.score_samples(odd_folder), -ash.network_(shaped).logsumexp(1).detach(), rtol=1e-4, atol=1e-4
    )


def test_dfm_is_the_error_of_principal_components(fitted, training, odd_folder):
    detector = fitted("anomalib+dfm")
    samples, _ = detector._read(training, None)
    odd, _ = detector._read(open_images(odd_folder), None)
    pca = PCA().fit(samples)
    count = detector.network_.singular_vectors.shape[1]
    assert 0.9 < pca.explained_variance_ratio_[:count].sum() < 0.98
    centred = odd - pca.mean_
    error = np.square(centred).sum(axis=1) - np.square(centred @ pca.components_[:count].T).sum(axis=1)
    np.testing.assert_allclose(detector.score_samples(odd_folder), error, rtol=1e-2)


def test_pyod_agrees_with_scikit_learn(fitted, odd_folder):
    detector = fitted("pyod+lof")
    samples, _ = detector._read(open_images(odd_folder), None)
    own = LocalOutlierFactor(20, novelty=True).fit(detector.network_.references.numpy())
    np.testing.assert_allclose(detector.score_samples(odd_folder), -own.score_samples(samples), rtol=1e-5)


@pytest.mark.parametrize("name", ["pyod+lof", "anomalib+fre", "msp"])
def test_fitting_to_features_is_fitting_to_their_images(fitted, training, odd_folder, name):
    from_images = fitted(name)
    samples, _ = from_images._read(training, None)
    odd, _ = from_images._read(open_images(odd_folder), None)
    labels = [int("one" in item.name) for item in training.items]
    detector = make_detector(name, **TINY[name])
    with pytest.raises(NotFittedError):
        detector.score_features(odd)
    detector.fit_features(samples, labels=labels)
    np.testing.assert_allclose(detector.score_features(odd), from_images.score_samples(odd_folder), rtol=1e-5)
    with pytest.raises(FeatureError, match="columns"):
        detector.score_features(odd[:, 1:])


def test_features_that_cannot_be_fitted_to_are_refused(training):
    detector = make_detector("msp", **TINY["msp"])
    few = np.ones((19, 3), np.float32)
    with pytest.raises(InputError, match="'msp' needs a label"):
        detector.fit_features(few)
    with pytest.raises(TooFewImagesError, match="19 readable images are too few"):
        make_detector("pyod+lof").fit_features(few)
    with pytest.raises(FeatureError, match="NaN"):
        make_detector("pyod+lof").fit_features(few * np.nan)
