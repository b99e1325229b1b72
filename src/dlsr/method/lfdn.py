"""The Latent Feature Diffusion Network (paper, section 3.2 and Fig. 2): a residual MLP that predicts `z0`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OneGroupNorm(nn.GroupNorm):
    """GroupNorm with one group. For vectors this equals LayerNorm, which is faster and supported by every engine."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)

    def forward(self, input: Tensor) -> Tensor:
        """`input`: shape `(N, width)`; same shape."""
        return F.layer_norm(input, (self.num_channels,), self.weight, self.bias, self.eps)


class ResBlock(nn.Module):
    """GroupNorm-SiLU-Linear twice with a skip connection; the time embedding is added in between (Fig. 2).

    Args:
        width: width of the block.
        time_width: width of the time embedding; None for a block without time.
    """

    def __init__(self, width: int, time_width: int | None) -> None:
        super().__init__()
        self.norm_in = OneGroupNorm(width)
        self.linear_in = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width) if time_width else None
        self.norm_out = OneGroupNorm(width)
        self.linear_out = nn.Linear(width, width)

    def forward(self, h: Tensor, time_shift: Tensor | float = 0.0) -> Tensor:
        """`h`: shape `(N, width)`; `time_shift`: result of `time_shift()`, shape `(N, width)` or `(width,)`."""
        branch = self.linear_in(F.silu(self.norm_in(h))) + time_shift
        out: Tensor = h + self.linear_out(F.silu(self.norm_out(branch)))
        return out

    def time_shift(self, embedding: Tensor) -> Tensor:
        """The block's shift for a time embedding of shape `(.., time_width)`; shape `(.., width)`."""
        assert self.time is not None
        shift: Tensor = self.time(F.silu(embedding))
        return shift


class LFDN(nn.Module):
    """Predicts `z0` from `zt` and `t`.

    Args:
        c: dimension of the features.
        width: width of the blocks, an even number; `2 * c` in the paper (section 4.2).
        blocks: number of residual blocks; 16 in the paper.
        outputs: dimension of the output; None for `c`.
    """

    def __init__(self, c: int, width: int, blocks: int, outputs: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.linear_in = nn.Linear(c, width)
        self.time_mlp = nn.Sequential(nn.Linear(width, c), nn.SiLU(), nn.Linear(c, c))
        self.blocks = nn.ModuleList(ResBlock(width, c) for _ in range(blocks))
        self.norm_out = OneGroupNorm(width)
        self.linear_out = nn.Linear(width, c if outputs is None else outputs)

    def forward(self, zt: Tensor, t: Tensor) -> Tensor:
        """`zt`: shape `(N, c)`; `t`: shape `(N,)`. Returns the predicted `z0`, shape `(N, c)`."""
        # Samples in a batch share times, and the time embedding is computed once for each distinct time.
        times, indices = torch.unique(t, return_inverse=True)
        return self._predict(zt, [F.embedding(indices, shifts) for shifts in self._time_shifts(times)])

    def at_time(self, zt: Tensor, t: int) -> Tensor:
        """As `forward` for samples that are all at one time: a `dlsr.method.diffusion.Denoiser`.

        Shape `(N, c)` to `(N, c)`.
        """
        return self._predict(zt, self._time_shifts(torch.full((), t, device=zt.device)))

    def _time_shifts(self, t: Tensor) -> list[Tensor]:
        embedding = self.time_mlp(sinusoidal_embedding(t, self.width).to(self.linear_in.weight.dtype))
        return [block.time_shift(embedding) for block in self._blocks()]

    def _predict(self, zt: Tensor, time_shifts: list[Tensor]) -> Tensor:
        h: Tensor = self.linear_in(zt)
        for block, time_shift in zip(self._blocks(), time_shifts, strict=True):
            h = block(h, time_shift)
        prediction: Tensor = self.linear_out(F.silu(self.norm_out(h)))
        return prediction

    def _blocks(self) -> list[ResBlock]:
        return [block for block in self.blocks if isinstance(block, ResBlock)]


def sinusoidal_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of `t` (Vaswani et al. 2017, section 3.5).

    Args:
        t: times of any shape.
        width: dimension of the embedding, an even number.
        max_period: longest period of the sines, divided by `2 * pi`.

    Returns:
        Embedding of shape `t.shape + (width,)`.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angle = t.float()[..., None] * frequencies
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
