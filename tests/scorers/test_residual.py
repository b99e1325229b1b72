"""The default score, part by part."""

import pytest
import torch

from dlsr.method.noise import row_digests
from dlsr.scorers import resolve
from dlsr.scorers.base import FitData, new_scorer, score_features
from dlsr.training.data import Samples
from dlsr.training.loop import Draws, Trainer

CHANNELS = (2, 4)


def correlated(n=2000, seed=0):
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(9)) + 3 * torch.eye(6)
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) @ mixing + 3


def unfitted(channels=CHANNELS, gaussian=None, **changes):
    small = {"width": 16, "blocks": 1, "epochs": 2, "T": 10, "t": 8} | changes
    scorer = new_scorer(resolve("default", "residual", small), channels)
    scorer.gaussian.fit([correlated() if gaussian is None else gaussian])
    return scorer


def fitted(**changes):
    small = {"width": 16, "blocks": 1, "epochs": 2} | changes
    settings = resolve("default", "residual", small)
    validation = correlated(300, seed=1)
    data = FitData(
        settings,
        CHANNELS,
        Samples(correlated()),
        torch.arange(len(correlated())),
        validation,
        row_digests(validation.numpy()),
    )
    scorer = new_scorer(settings, CHANNELS)
    log = scorer.fit(data, Trainer())
    return scorer, data, log


@pytest.fixture(scope="module")
def trained():
    return fitted()


def test_an_untrained_network_restores_as_the_gaussian_does():
    scorer = unfitted()
    xt, t = torch.randn(5, 6), torch.tensor([1, 3, 5, 7, 10])
    signal = scorer.alpha_bar[t][:, None]
    x0_hat, expected = scorer.restored(scorer.lfdn(xt, t), xt, signal)
    torch.testing.assert_close(x0_hat, scorer.gaussian.wiener(xt, signal))
    assert torch.equal(expected, torch.zeros(5, 2))


def test_the_error_from_pure_noise_is_the_mahalanobis_distance():
    scorer = unfitted((6,), T=100, t=100, draws=1)
    z0 = correlated(50, seed=2)
    actual, _ = scorer.log_errors(z0, torch.randn(50, 1, 6))
    expected = scorer.gaussian.whiten(z0).square().mean(dim=1).log()
    torch.testing.assert_close(actual[:, 0], expected, atol=0.1, rtol=0)


def test_an_image_is_scored_by_its_error_against_the_error_to_expect(trained):
    scorer, _, _ = trained
    z0, noise = correlated(20, seed=3), torch.randn(20, scorer.noise_vectors, 6)
    actual, expected = scorer.log_errors(z0, noise)
    scores, layers = scorer(z0, noise)
    raw = actual - expected.minimum(scorer.ceiling)
    torch.testing.assert_close(layers, (raw - scorer.location) / scorer.spread)
    weights = torch.tensor([2.0, 4.0]).sqrt()
    torch.testing.assert_close(scores, (layers * weights).sum(dim=1) / weights.sum())


def test_layers_are_standardised_on_held_out_images(trained):
    scorer, data, _ = trained
    _, layers = score_features(scorer, data.validation, data.validation_digests, seed=0)
    torch.testing.assert_close(layers.mean(dim=0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(layers.std(dim=0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_the_expected_error_is_capped_at_its_95th_percentile(trained):
    scorer, data, _ = trained
    noise = torch.randn(300, scorer.noise_vectors, 6)
    _, expected = scorer.log_errors(data.validation, noise)
    above = (expected > scorer.ceiling).float().mean(dim=0)
    assert ((above > 0.01) & (above < 0.12)).all()


def test_draws_are_averaged():
    scorer = unfitted(draws=3)
    z0, noise = correlated(4, seed=3), torch.randn(4, 3, 6)
    together, _ = scorer.log_errors(z0, noise)
    single = unfitted(draws=1)
    single.load_state_dict(scorer.state_dict())
    apart = torch.stack([single.log_errors(z0, noise[:, i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, apart.mean(dim=0))


def test_training_lowers_the_loss(trained):
    _, _, log = trained
    longer = fitted(epochs=20, lr=3e-3)[2]
    assert longer[-1].validation_loss < log[0].validation_loss


def test_it_learns_which_images_are_hard():
    """Half the images have ten times the error of the others, and show by their first feature which they are."""
    random = torch.Generator().manual_seed(0)
    hard = torch.arange(2000) % 2
    z0 = torch.randn(2000, 8, generator=random) * (1 + 9 * hard[:, None])
    z0[:, 0] = 30.0 * (2 * hard - 1)
    scorer = unfitted((8,), gaussian=z0, width=32, t=5)
    optimizer = torch.optim.AdamW(scorer.lfdn.parameters(), lr=3e-3)
    x0 = scorer.gaussian.coordinates(z0)
    for _ in range(150):
        optimizer.zero_grad()
        scorer.loss(x0, Draws(random, len(x0))).backward()
        optimizer.step()
    xt = scorer.alpha_bar[5].sqrt() * x0
    _, expected = scorer.restored(scorer.lfdn.at_time(xt, 5), xt, scorer.alpha_bar[5])
    assert expected[hard == 1].mean() - expected[hard == 0].mean() > 2
