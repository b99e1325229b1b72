import numpy as np
import pytest
import torch

from dlsr.method.features import max_pool, mean_pool, std_pool, to_z0, zscore
from dlsr.method.layers import POOLINGS, layer_dimensions, layer_slices


@pytest.fixture
def maps():
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=random) + 5, torch.randn(2, 5, 2, 4, generator=random)]


def test_zscore_has_biased_variance_with_delta_added():
    f = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    expected = (f - 3.0) / np.sqrt(3.5 + 0.5)
    torch.testing.assert_close(zscore(f, delta=0.5), expected)
    assert torch.equal(zscore(torch.full((1, 4), 2.0)), torch.zeros(1, 4))


def test_pooling_is_numpys(maps):
    for stage in maps:
        values = stage.double().numpy()
        np.testing.assert_allclose(mean_pool(stage), values.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std_pool(stage), values.std(axis=(2, 3)), rtol=1e-5)
        np.testing.assert_allclose(max_pool(stage), values.max(axis=(2, 3)), rtol=1e-6)


def test_the_deviation_of_a_large_constant_with_little_variation_is_not_lost_to_rounding():
    variation = torch.tensor([-0.01, 0.01]).repeat(8).reshape(1, 1, 4, 4)
    torch.testing.assert_close(std_pool(1000 + variation), torch.full((1, 1), 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_part_of_each_layer_is_normalised_by_itself(maps, pooling):
    functions = {"mean": np.mean, "std": np.std, "max": np.max}
    expected = []
    for stage in maps:
        for name in pooling.split("+"):
            part = functions[name](stage.double().numpy(), axis=(2, 3))
            centred = part - part.mean(axis=1, keepdims=True)
            expected.append(centred / np.sqrt(part.var(axis=1, keepdims=True) + 1e-5))
    np.testing.assert_allclose(to_z0(maps, pooling), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_without_pooling_given_it_is_the_papers(maps):
    assert torch.equal(to_z0(maps), to_z0(maps, "mean"))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_constant_map_gives_finite_numbers(pooling):
    assert to_z0([torch.full((2, 3, 4, 4), 7.0), torch.zeros(2, 4, 1, 1)], pooling).isfinite().all()


@pytest.mark.parametrize(
    ("pooling", "dimensions"), [("mean", (3, 5)), ("mean+std", (6, 10)), ("mean+std+max", (9, 15))]
)
def test_layers_have_a_dimension_for_each_channel_and_part(maps, pooling, dimensions):
    assert layer_dimensions((3, 5), pooling) == dimensions
    assert to_z0(maps, pooling).shape == (2, sum(dimensions))


def test_layers_follow_each_other():
    assert layer_slices((3, 5)) == [slice(0, 3), slice(3, 8)]
