"""Restoration that knows its own error: what the preset `default` adds to the paper's network.

Two things are given to LFDN. What a Gaussian can restore is restored in closed form (a Wiener filter), so that
the network learns only what a Gaussian misses. And beside `z0` it predicts how large the error of each layer
will be, from the distorted features alone, that is from what of the image can be seen from afar. An image that
is restored worse *than images that look like it from afar usually are* is out of distribution.

Features are in the coordinates of `dlsr.scorers.gaussian`, in which errors can be measured in units of what a Gaussian
would leave: at `t = T` nothing is left of the image, and the error is its Mahalanobis distance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.method.lfdn import LFDN, RestorationNetwork
from dlsr.method.scores import layer_means
from dlsr.scorers.gaussian import Gaussian

TINY = 1e-6


class ErrorAwareLFDN(RestorationNetwork):
    """LFDN around a Wiener filter, which also predicts the log error of each layer.

    Args:
        gaussian: fitted to the training features.
        channels: dimensions of each layer, M numbers that sum to `c`.
        width: of LFDN's blocks.
        blocks: of LFDN.
        alpha_bar: schedule, shape `(T + 1,)`.
    """

    alpha_bar: Tensor

    def __init__(self, gaussian: Gaussian, channels: Sequence[int], width: int, blocks: int, alpha_bar: Tensor) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.channels = tuple(channels)
        self.lfdn = LFDN(sum(channels), width, blocks, outputs=sum(channels) + len(channels))
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        # Starting at the Gaussian's own restoration: training can only add to it.
        nn.init.zeros_(self.lfdn.linear_out.weight)
        nn.init.zeros_(self.lfdn.linear_out.bias)

    def forward(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Restore coordinates `xt`, shape `(N, c)`, at times `t`, shape `(N,)`.

        Returns:
            The predicted `x0`, shape `(N, c)`, and the expected `log_errors` of it, shape `(N, M)`.
        """
        return self.interpret(self.lfdn(xt, t), xt, self.alpha_bar[t][:, None])

    def interpret(self, prediction: Tensor, xt: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """What LFDN's output means for `xt` at `signal = alpha_bar_t`: as `forward` returns it."""
        correction, expected = torch.split(prediction, [sum(self.channels), len(self.channels)], dim=-1)
        x0_hat = self.gaussian.wiener(xt, signal) + self.gaussian.posterior_std(signal) * correction
        return x0_hat, expected

    def log_errors(self, x0: Tensor, x0_hat: Tensor, signal: Tensor) -> Tensor:
        """Log of each layer's mean squared error in units of a Gaussian's: `(.., c)` twice to `(.., M)`."""
        whitened = (x0 - x0_hat) / self.gaussian.posterior_std(signal)
        squares = self.gaussian.per_feature(whitened).square()
        return (layer_means(squares, self.channels) + TINY).log()

    def loss(self, z0: Tensor, zt: Tensor, t: Tensor) -> Tensor:
        """Eq. 4 plus the squared error of the expected log errors, both means: shape `()`."""
        x0_hat, expected = self(zt, t)
        with torch.no_grad():
            actual = self.log_errors(z0, x0_hat, self.alpha_bar[t][:, None])
        return F.mse_loss(x0_hat, z0) + F.mse_loss(expected, actual)
