import numpy as np
import pytest
import torch

from dlsr.method.features import layer_slices, pool, to_z0, zscore
from dlsr.method.scores import layer_means, layer_similarities, likelihood_regret, mfsim, mse


def test_zscore_has_biased_variance_and_delta_under_the_root():
    f = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    expected = (f - 3.0) / np.sqrt(3.5 + 0.5)
    torch.testing.assert_close(zscore(f, delta=0.5), expected)
    assert torch.equal(zscore(torch.full((1, 4), 2.0)), torch.zeros(1, 4))


def test_each_map_is_pooled_at_its_own_size():
    maps = [torch.rand(2, 3, 8, 8), torch.rand(2, 5, 2, 4)]
    torch.testing.assert_close(pool(maps[1]), maps[1].flatten(2).mean(dim=2))
    z0 = to_z0(maps)
    assert z0.shape == (2, 8)
    for part in (z0[:, :3], z0[:, 3:]):
        torch.testing.assert_close(part.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std(dim=1, correction=0), torch.ones(2), atol=0.1, rtol=0)
    assert layer_slices((3, 5)) == [slice(0, 3), slice(3, 8)]


def test_mse_and_regret():
    z0, good, bad = torch.zeros(1, 4), torch.full((1, 4), 0.5), torch.full((1, 4), 2.0)
    assert mse(z0, good) == pytest.approx(0.25)
    assert likelihood_regret(z0, bad, good) == pytest.approx(4 - 0.25)


def test_mfsim_counts_every_layer_alike():
    z0 = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]])
    restored = torch.tensor([[0.0, 1.0, 2.0, 2.0, 2.0]])
    similarities = layer_similarities(z0, restored, (2, 3))
    torch.testing.assert_close(similarities, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(mfsim(similarities), torch.tensor([-0.5]))
    assert mfsim(layer_similarities(z0, z0, (2, 3))) == pytest.approx(-1)


def test_layer_means():
    means = layer_means(torch.tensor([[1.0, 3.0, 6.0]]), (2, 1))
    torch.testing.assert_close(means, torch.tensor([[2.0, 6.0]]))
