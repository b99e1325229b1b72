import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from dlsr.scorers import gaussian as gaussian_module
from dlsr.scorers.gaussian import Gaussian


def correlated(n=5000, seed=0):
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((6, 6)) + 3 * np.eye(6)
    return torch.from_numpy((random.standard_normal((n, 6)) @ mixing + 3).astype(np.float32))


def test_whitened_lengths_are_mahalanobis_distances():
    z0 = correlated()
    gaussian = Gaussian(6).fit([z0])
    precision = np.linalg.inv(np.cov(z0.numpy().T, bias=True))
    mean = z0.double().mean(dim=0).numpy()
    expected = [mahalanobis(row, mean, precision) for row in z0[:20].double().numpy()]
    torch.testing.assert_close(
        gaussian.whiten(z0[:20]).norm(dim=1), torch.tensor(expected).float(), rtol=1e-2, atol=1e-2
    )
    whitened = gaussian.whiten(z0)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(6), atol=0.02, rtol=0)


def test_wiener_is_the_best_linear_restoration():
    x0 = Gaussian(6).fit([correlated()]).coordinates(correlated(seed=1))
    gaussian = Gaussian(6).fit([correlated()])
    signal = torch.tensor(0.3)
    xt = signal.sqrt() * x0 + (1 - signal).sqrt() * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = gaussian.wiener(xt, signal) - x0
    slopes = (xt * x0).mean(dim=0) / (xt * xt).mean(dim=0)
    assert error.square().mean() < (slopes * xt - x0).square().mean() * 1.01
    torch.testing.assert_close(error.std(dim=0), gaussian.posterior_std(signal), rtol=0.05, atol=0)


def test_few_or_equal_images_still_give_finite_distances():
    for samples in (correlated(3), torch.ones(4, 6)):
        assert torch.isfinite(Gaussian(6).fit([samples]).whiten(correlated(10))).all()


def test_a_large_dataset_is_read_in_chunks(monkeypatch):
    whole = Gaussian(6).fit([correlated()])
    largest = []
    split = torch.split

    def watched(samples, size):
        parts = split(samples, size)
        largest.append(max(len(part) for part in parts))
        return parts

    monkeypatch.setattr(gaussian_module, "CHUNK", 700)
    monkeypatch.setattr(gaussian_module.torch, "split", watched)
    chunked = Gaussian(6).fit([correlated()])
    assert largest == [700, 700]
    torch.testing.assert_close(chunked.whiten(correlated()).norm(dim=1), whole.whiten(correlated()).norm(dim=1))


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_distances_without_a_group_are_those_of_a_gaussian_fitted_without_it(ridge):
    z0 = correlated(40)
    groups = torch.cat([torch.tensor([5] * 5 + [0] + [2] * 10), torch.arange(6, 30)])
    gaussian = Gaussian(6).fit([z0], ridge)
    distances = gaussian.whiten(z0).square().sum(dim=1)
    actual = gaussian.growth_without(z0, groups, 40) * distances
    for group in groups.unique():
        members = groups == group
        without = Gaussian(6).fit([z0[~members]], ridge)
        expected = without.whiten(z0[members]).square().sum(dim=1)
        torch.testing.assert_close(actual[members], expected, rtol=0.04, atol=0)
        if members.sum() > 5:
            assert distances[members].mean() < 0.9 * expected.mean()
        # Of some of the samples it is the same, if they are whole groups.
        some = gaussian.growth_without(z0[members | (groups == 6)], groups[members | (groups == 6)], 40)
        torch.testing.assert_close(some * distances[members | (groups == 6)], actual[members | (groups == 6)])
