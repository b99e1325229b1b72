import numpy as np
import pytest
import torch
from torch import nn

from dlsr.runtime.backends import make_engine
from dlsr.runtime.base import Graph
from dlsr.runtime.torch_engine import HALF_TOLERANCE, half_agrees

CPU = "cpu"

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Convolution(nn.Module):
    """A convolution of pixels; `scale` 0 has the same output in any precision."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(scale)

    def forward(self, pixels):
        return self.convolution(pixels.float().permute(0, 3, 1, 2)).mean(dim=(2, 3))


def graph(scale):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Graph(lambda: Convolution(scale), {"pixels": pixels}, ("z0",), "")


def largest_difference(scale, device):
    """Between an engine on a device and the module on the CPU."""
    pixels = graph(scale).inputs["pixels"]
    with torch.no_grad():
        expected = Convolution(scale)(pixels).numpy()
    (found,) = make_engine(graph(scale), "torch", device)(pixels.numpy())
    assert found.dtype == np.float32
    return np.abs(found - expected).max()


def test_half_precision_is_used_only_if_the_outputs_agree():
    assert not half_agrees(Convolution(1), graph(1).inputs, CPU, torch.bfloat16)
    assert half_agrees(Convolution(0), graph(0).inputs, CPU, torch.bfloat16)


def test_the_cpu_computes_in_single_precision():
    assert largest_difference(1, CPU) < 1e-3


@needs_gpu
def test_a_gpu_computes_in_half_precision_if_the_outputs_agree():
    device = "cuda"
    small = 1e-4
    assert half_agrees(Convolution(small).to(device), graph(small).inputs, device, torch.float16)
    assert 0 < largest_difference(small, device) <= 2 * HALF_TOLERANCE


@needs_gpu
def test_a_gpu_computes_in_single_precision_if_half_precision_differs(monkeypatch):
    device = "cuda"
    # TF32 would be another reason for a difference.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    large = 10
    assert not half_agrees(Convolution(large).to(device), graph(large).inputs, device, torch.float16)
    assert largest_difference(large, device) < 1e-2
