import pytest

from dlsr import Detector, evaluate_scores
from shared import CHANNELS


@pytest.mark.parametrize("score", ["autoencoder", "feature-vae"])
def test_autoencoders_separate_features_that_break_the_correlation(score, features):
    inside, outside = features
    detector = Detector(score=score, width=64, epochs=60, batch_size=32, lr=3e-3).fit_features(inside, CHANNELS)
    auroc = evaluate_scores(detector.score_features(inside[:200]), detector.score_features(outside)).auroc
    assert auroc > 0.75
