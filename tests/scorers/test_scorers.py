"""What holds for every score, and each against an independent implementation."""

import copy

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from dlsr import SCORES, SettingsError
from dlsr.method.noise import row_digests
from dlsr.scorers import resolve
from dlsr.scorers.base import FitData, new_scorer, score_features
from dlsr.training.data import Samples
from dlsr.training.loop import Trainer

CHANNELS = (4, 8, 12)
SMALL = {"width": 16, "blocks": 1, "epochs": 1, "neighbours": 7}


def fitted(score, features, **changes):
    known = SCORES[score].Settings.model_fields
    settings = resolve(score=score, changes={name: v for name, v in (SMALL | changes).items() if name in known})
    features = torch.from_numpy(features)
    data = FitData(
        settings,
        CHANNELS,
        Samples(features),
        torch.arange(len(features)),
        features[:50],
        row_digests(features[:50].numpy()),
    )
    scorer = new_scorer(settings, CHANNELS)
    scorer.fit(data, Trainer())
    return scorer.eval()


def scored(scorer, features):
    return score_features(scorer, torch.from_numpy(features), row_digests(features), seed=0)


@pytest.fixture(scope="module")
def all_fitted(features):
    return {score: fitted(score, features[0]) for score in SCORES}


@pytest.mark.parametrize("score", SCORES)
def test_the_state_dict_is_all_that_was_learned(all_fitted, features, score):
    scorer = all_fitted[score]
    settings = resolve(score=score).model_copy(update={"scorer": scorer.settings})
    for assign in (False, True):
        other = new_scorer(settings, CHANNELS)
        other.load_state_dict(copy.deepcopy(scorer.state_dict()), assign=assign)
        for a, b in zip(scored(scorer, features[1]), scored(other, features[1]), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("score", SCORES)
def test_to_moves_all_of_it(all_fitted, features, score):
    """In double precision instead of on another device, which this machine may not have."""
    double = copy.deepcopy(all_fitted[score]).double()
    numbers = {tensor.dtype for tensor in double.state_dict().values() if tensor.is_floating_point()}
    assert numbers == {torch.float64}
    assert {buffer.dtype for buffer in double.buffers()} <= {torch.float64, torch.int64}
    z0 = torch.from_numpy(features[1][:8]).double()
    noise = torch.randn(8, double.noise_vectors, 24, dtype=torch.float64)
    with torch.no_grad():
        scores, layers = double(z0, noise)
    assert (scores.dtype, layers.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_says_what_it_is(score):
    scorer = SCORES[score]
    assert scorer.name == score
    assert scorer.summary
    assert all(field.description for field in scorer.Settings.model_fields.values())
    assert all(isinstance(settings, scorer.Settings) for settings in scorer.presets.values())


def test_settings_of_another_score_are_refused():
    with pytest.raises(SettingsError, match=r"'residual' has no setting .neighbours.; its settings are: .*draws"):
        resolve(score="residual", changes={"neighbours": 3})


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_knn_is_scikit_learns(features, offset):
    inside, outside = (samples + np.float32(offset) for samples in features)
    scores, layers = scored(fitted("knn", inside), outside)
    search = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(inside.astype(np.float64))
    expected = search.kneighbors(outside.astype(np.float64))[0][:, -1]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    sizes = torch.tensor([4.0, 8.0, 12.0])
    torch.testing.assert_close((layers.square() * sizes).sum(dim=1).sqrt(), scores)


def test_mahalanobis_is_scikit_learns(features):
    inside, outside = features
    scores, _ = scored(fitted("mahalanobis", inside), outside)
    # 6 of the 24 dimensions carry nearly all variance; the small ones are where the ridge would show.
    expected = EmpiricalCovariance().fit(inside.astype(np.float64)).mahalanobis(outside.astype(np.float64)) / 24
    assert np.corrcoef(np.log(scores.numpy()), np.log(expected))[0, 1] > 0.9


def test_likelihood_regret_is_what_training_took_off_the_error(features):
    settings = resolve("paper", "lr", {"width": 16, "blocks": 2, "draws": 3})
    regret = new_scorer(settings, CHANNELS)
    torch.manual_seed(1)
    for parameter in regret.lfdn.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    learned = regret.state_dict()
    before = {name.replace("initial.", "lfdn."): tensor for name, tensor in learned.items() if "initial." in name}
    errors = []
    for weights in (learned | before, learned):
        mse = SCORES["mse"](settings.scorer, CHANNELS)
        mse.load_state_dict(weights)
        errors.append(scored(mse.eval(), features[0][:20]))
    (before_scores, before_layers), (after_scores, after_layers) = errors
    scores, layers = scored(regret, features[0][:20])
    assert scores.abs().max() > 0
    torch.testing.assert_close(scores, before_scores - after_scores)
    torch.testing.assert_close(layers, before_layers - after_layers)
