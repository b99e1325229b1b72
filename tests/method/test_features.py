import numpy as np
import torch

from dlsr.method.features import layer_slices, pool, to_z0, zscore


def test_zscore_has_biased_variance_with_delta_added():
    f = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    expected = (f - 3.0) / np.sqrt(3.5 + 0.5)
    torch.testing.assert_close(zscore(f, delta=0.5), expected)
    assert torch.equal(zscore(torch.full((1, 4), 2.0)), torch.zeros(1, 4))


def test_each_layer_is_pooled_at_its_own_size_and_normalised_alone():
    maps = [torch.rand(2, 3, 8, 8), torch.rand(2, 5, 2, 4)]
    torch.testing.assert_close(pool(maps[1]), maps[1].flatten(2).mean(dim=2))
    z0 = to_z0(maps)
    assert z0.shape == (2, 8)
    for part in (z0[:, :3], z0[:, 3:]):
        torch.testing.assert_close(part.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std(dim=1, correction=0), torch.ones(2), atol=0.1, rtol=0)
    assert layer_slices((3, 5)) == [slice(0, 3), slice(3, 8)]
