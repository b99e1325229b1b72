import pytest
import torch

from dlsr.method.scores import layer_means, layer_similarities, likelihood_regret, mfsim, mse


def test_mse_and_likelihood_regret_of_an_example():
    z0, good, bad = torch.zeros(1, 4), torch.full((1, 4), 0.5), torch.full((1, 4), 2.0)
    assert mse(z0, good) == pytest.approx(0.25)
    assert likelihood_regret(z0, bad, good) == pytest.approx(4 - 0.25)


def test_mfsim_gives_every_layer_the_same_weight():
    z0 = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]])
    restored = torch.tensor([[0.0, 1.0, 2.0, 2.0, 2.0]])
    similarities = layer_similarities(z0, restored, (2, 3))
    torch.testing.assert_close(similarities, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(mfsim(similarities), torch.tensor([-0.5]))
    assert mfsim(layer_similarities(z0, z0, (2, 3))) == pytest.approx(-1)


def test_layer_means_of_an_example():
    means = layer_means(torch.tensor([[1.0, 3.0, 6.0]]), (2, 1))
    torch.testing.assert_close(means, torch.tensor([[2.0, 6.0]]))
