import numpy as np
import pytest
import torch

from dlsr.method.features import to_z0
from dlsr.method.layers import POOLINGS, layer_dimensions
from dlsr.method.maps import before_zscore, odd_places, resized

SHAPES = ((3, 8, 8), (5, 4, 4))


@pytest.fixture
def feature_maps():
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def test_a_gradient_goes_back_through_the_z_score():
    random = torch.Generator().manual_seed(0)
    pooled = torch.randn(1, 7, generator=random, requires_grad=True)
    gradient = torch.randn(7, generator=random)
    (to_z0([pooled[:, :, None, None]])[0] @ gradient).backward()
    found = before_zscore(gradient.numpy(), pooled.detach().numpy()[0])
    np.testing.assert_allclose(found, pooled.grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_places_are_those_that_raise_a_linear_score(feature_maps, pooling):
    """Against automatic differentiation with respect to the maps, at each position, less its mean over all."""
    channels = layer_dimensions([shape[0] for shape in SHAPES], pooling)
    gradient = np.random.default_rng(1).standard_normal(sum(channels)).astype(np.float32)
    maps = [torch.from_numpy(one)[None].requires_grad_() for one in feature_maps]
    wanted = [
        i for name, k in ((name, shape[0]) for shape in SHAPES for name in pooling.split("+")) for i in [name] * k
    ]
    without_max = torch.from_numpy(np.where(np.array(wanted) == "max", 0, gradient).astype(np.float32))
    (to_z0(maps, pooling)[0] @ without_max).backward()
    total = np.zeros((4, 4), np.float32)
    for one in maps:
        deviations = (one - one.mean(dim=(2, 3), keepdim=True)).detach()
        pulled = (one.grad * deviations).sum(dim=1)[0].numpy() * one[0, 0].numel()
        total += resized(pulled - pulled.mean(), 4)
    expected = total.clip(min=0) / total.clip(min=0).mean()
    found = odd_places(feature_maps, gradient, channels, pooling, side=4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_place_alone_with_a_feature_stands_out():
    spot = np.zeros((2, 8, 8), np.float32)
    spot[0, 2, 5] = 1
    found = odd_places([spot], np.array([1, -1], np.float32), (2,), "mean", side=8)
    assert np.unravel_index(found.argmax(), found.shape) == (2, 5)
    assert found.mean() == pytest.approx(1)


def test_no_place_stands_out_without_a_gradient(feature_maps):
    found = odd_places(feature_maps, np.zeros(8, np.float32), (3, 5), "mean")
    np.testing.assert_array_equal(found, 1)


@pytest.mark.parametrize("side", [3, 8, 28])
def test_resizing_keeps_what_is_even_and_where_things_are(side):
    np.testing.assert_allclose(resized(np.full((8, 5), 2, np.float32), side), 2, rtol=1e-6)
    ramp = resized(np.tile(np.arange(8, dtype=np.float32), (8, 1)), side)
    assert (np.diff(ramp[0]) >= 0).all()
    assert ramp[0].mean() == pytest.approx(3.5, abs=1e-5)
