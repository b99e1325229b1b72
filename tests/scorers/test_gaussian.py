import numpy as np
import torch
from scipy.spatial.distance import mahalanobis

from dlsr.method.schedule import cosine_alpha_bar
from dlsr.scorers.expected_error import ErrorAwareLFDN
from dlsr.scorers.gaussian import Gaussian


def correlated(n=5000, seed=0):
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((6, 6)) + 3 * np.eye(6)
    return torch.from_numpy((random.standard_normal((n, 6)) @ mixing + 3).astype(np.float32))


def test_whitened_lengths_are_mahalanobis_distances():
    z0 = correlated()
    gaussian = Gaussian.fit([z0])
    precision = np.linalg.inv(np.cov(z0.numpy().T, bias=True))
    mean = z0.double().mean(dim=0).numpy()
    expected = [mahalanobis(row, mean, precision) for row in z0[:20].double().numpy()]
    torch.testing.assert_close(
        gaussian.whiten(z0[:20]).norm(dim=1), torch.tensor(expected).float(), rtol=1e-2, atol=1e-2
    )
    whitened = gaussian.whiten(z0)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(6), atol=0.02, rtol=0)


def test_wiener_is_the_best_linear_restoration():
    x0 = Gaussian.fit([correlated()]).coordinates(correlated(seed=1))
    gaussian = Gaussian.fit([correlated()])
    signal = torch.tensor(0.3)
    xt = signal.sqrt() * x0 + (1 - signal).sqrt() * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = gaussian.wiener(xt, signal) - x0
    slopes = (xt * x0).mean(dim=0) / (xt * xt).mean(dim=0)
    assert error.square().mean() < (slopes * xt - x0).square().mean() * 1.01
    torch.testing.assert_close(error.std(dim=0), gaussian.posterior_std(signal), rtol=0.05, atol=0)


def test_few_or_equal_images_still_give_finite_distances():
    for rows in (correlated(3), torch.ones(4, 6)):
        assert torch.isfinite(Gaussian.fit([rows]).whiten(correlated(10))).all()


def test_untrained_network_restores_as_the_gaussian_does():
    gaussian, alpha_bar = Gaussian.fit([correlated()]), cosine_alpha_bar(10)
    network = ErrorAwareLFDN(gaussian, (2, 4), width=16, blocks=1, alpha_bar=alpha_bar)
    xt, t = torch.randn(5, 6), torch.tensor([1, 3, 5, 7, 10])
    x0_hat, expected = network(xt, t)
    torch.testing.assert_close(x0_hat, gaussian.wiener(xt, alpha_bar[t][:, None]))
    assert torch.equal(expected, torch.zeros(5, 2))


def test_error_from_pure_noise_is_the_mahalanobis_distance():
    gaussian = Gaussian.fit([correlated()])
    alpha_bar = cosine_alpha_bar(10, end=1e-8)
    network = ErrorAwareLFDN(gaussian, (6,), width=16, blocks=1, alpha_bar=alpha_bar)
    z0 = correlated(50, seed=2)
    x0 = gaussian.coordinates(z0)
    x0_hat, _ = network(torch.randn(50, 6), torch.full((50,), 10))
    log_errors = network.log_errors(x0, x0_hat, alpha_bar[10])
    expected = gaussian.whiten(z0).square().mean(dim=1).log()
    torch.testing.assert_close(log_errors[:, 0], expected, atol=1e-2, rtol=0)


def test_it_learns_which_images_are_hard():
    """Half the images have ten times the error of the others, and show by their first feature which they are."""
    random = torch.Generator().manual_seed(0)
    hard = torch.arange(2000) % 2
    z0 = torch.randn(2000, 8, generator=random) * (1 + 9 * hard[:, None])
    z0[:, 0] = 30.0 * (2 * hard - 1)
    gaussian, alpha_bar = Gaussian.fit([z0]), cosine_alpha_bar(10)
    network = ErrorAwareLFDN(gaussian, (8,), width=32, blocks=1, alpha_bar=alpha_bar)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    x0 = gaussian.coordinates(z0)
    for _ in range(150):
        t = torch.randint(1, 11, (2000,), generator=random)
        signal = alpha_bar[t][:, None]
        xt = signal.sqrt() * x0 + (1 - signal).sqrt() * torch.randn(x0.shape, generator=random)
        loss = network.loss(x0, xt, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, expected = network(alpha_bar[5].sqrt() * x0, torch.full((2000,), 5))
    assert expected[hard == 1].mean() - expected[hard == 0].mean() > 2
