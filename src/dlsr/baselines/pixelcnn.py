"""PixelCNN++ (Salimans et al. 2017) with the input-complexity score (Serrà et al. 2020).

The network has two streams: `u` sees the rows above a pixel, `ul` also the pixels to its left. Convolutions are shifted
rather than masked. Each pixel has a mixture of discretised logistics; in colour, green is conditioned on red, blue on
both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dlsr.baselines.complexity import complexity_of
from dlsr.baselines.pixels import PixelBaseline
from dlsr.config import TrainingSettings
from dlsr.training.loop import Trainer

PARAMETERS = {1: 3, 3: 10}
"""Parameters of a logistic by `C`: its weight, a mean and a scale for each channel; in colour, three links of these."""


class ShiftedConv(nn.Module):
    """A convolution that sees pixels above and to both sides (`right = True`), or above and to the left.

    `stride = 2` halves the image.
    """

    def __init__(self, before: int, after: int, kernel: tuple[int, int], right: bool, stride: int = 1) -> None:
        super().__init__()
        height, width = kernel
        sides = (width // 2, width // 2) if right else (width - 1, 0)
        self.pad = (*sides, height - 1, 0)
        self.conv = weight_norm(nn.Conv2d(before, after, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.conv(F.pad(x, self.pad))
        return out


class ShiftedUp(nn.Module):
    """A transposed convolution that doubles the image and sees the pixels that `ShiftedConv` sees."""

    def __init__(self, channels: int, right: bool) -> None:
        super().__init__()
        self.right = right
        self.conv = weight_norm(nn.ConvTranspose2d(channels, channels, (2, 3) if right else (2, 2), 2))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.conv(x)
        return out[:, :, :, 1:] if self.right else out


def shift_down(x: Tensor) -> Tensor:
    """Move images, shape `(n, C, H, W)`, down by a row; the first row is zero."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Move images, shape `(n, C, H, W)`, right by a column; the first column is zero."""
    return F.pad(x, (1, 0, 0, 0))[:, :, :, :-1]


def concat_elu(x: Tensor) -> Tensor:
    """ELU of `x` and of `-x`: twice the channels."""
    return F.elu(torch.cat([x, -x], dim=1))


class GatedBlock(nn.Module):
    """A gated residual block, optionally with `extra` channels of another stream or a skip connection as input."""

    def __init__(self, channels: int, right: bool, extra: int, dropout: float) -> None:
        super().__init__()
        kernel = (2, 3) if right else (2, 2)
        self.conv_in = ShiftedConv(2 * channels, channels, kernel, right)
        self.extra = weight_norm(nn.Conv2d(2 * extra, channels, 1)) if extra else None
        self.dropout = nn.Dropout(dropout)
        self.conv_out = ShiftedConv(2 * channels, 2 * channels, kernel, right)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """See the class."""
        h = self.conv_in(concat_elu(x))
        if self.extra is not None and extra is not None:
            h = h + self.extra(concat_elu(extra))
        value, gate = self.conv_out(self.dropout(concat_elu(h))).chunk(2, dim=1)
        out: Tensor = x + value * torch.sigmoid(gate)
        return out


class PixelCNNNetwork(nn.Module):
    """Parameters of the mixtures: images in `[-1, 1]`, shape `(n, C, H, W)`, to `(n, P * mixtures, H, W)`.

    `P` is `PARAMETERS[C]`.

    Args:
        channels: channels of each stream.
        blocks: blocks of each stream at each of three resolutions, on the way down and on the way up.
        mixtures: logistics for each pixel.
        dropout: rate of dropout inside the blocks.
        image_channels: `C`, 1 for grey images and 3 for colour.
    """

    LEVELS = 3

    def __init__(self, channels: int, blocks: int, mixtures: int, dropout: float, image_channels: int = 3) -> None:
        super().__init__()
        self.blocks = blocks
        # One more channel, of ones, so that padding differs from black pixels.
        self.first_u = ShiftedConv(image_channels + 1, channels, (2, 3), True)
        self.first_above = ShiftedConv(image_channels + 1, channels, (1, 3), True)
        self.first_left = ShiftedConv(image_channels + 1, channels, (2, 1), False)
        down, up = range(self.LEVELS * blocks), range(self.LEVELS * blocks + self.LEVELS - 1)
        self.down_u = nn.ModuleList(GatedBlock(channels, True, 0, dropout) for _ in down)
        self.down_ul = nn.ModuleList(GatedBlock(channels, False, channels, dropout) for _ in down)
        self.halve_u = nn.ModuleList(ShiftedConv(channels, channels, (2, 3), True, 2) for _ in range(self.LEVELS - 1))
        self.halve_ul = nn.ModuleList(ShiftedConv(channels, channels, (2, 2), False, 2) for _ in range(self.LEVELS - 1))
        self.up_u = nn.ModuleList(GatedBlock(channels, True, channels, dropout) for _ in up)
        self.up_ul = nn.ModuleList(GatedBlock(channels, False, 2 * channels, dropout) for _ in up)
        self.double_u = nn.ModuleList(ShiftedUp(channels, True) for _ in range(self.LEVELS - 1))
        self.double_ul = nn.ModuleList(ShiftedUp(channels, False) for _ in range(self.LEVELS - 1))
        self.last = weight_norm(nn.Conv2d(2 * channels, PARAMETERS[image_channels] * mixtures, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        us = [shift_down(self.first_u(x))]
        uls = [shift_down(self.first_above(x)) + shift_right(self.first_left(x))]
        for level in range(self.LEVELS):
            for i in range(level * self.blocks, (level + 1) * self.blocks):
                us.append(self.down_u[i](us[-1]))
                uls.append(self.down_ul[i](uls[-1], us[-1]))
            if level < self.LEVELS - 1:
                us.append(self.halve_u[level](us[-1]))
                uls.append(self.halve_ul[level](uls[-1]))
        u, ul = us.pop(), uls.pop()
        i = 0
        for level in range(self.LEVELS):
            for _ in range(self.blocks if level == 0 else self.blocks + 1):
                u = self.up_u[i](u, us.pop())
                ul = self.up_ul[i](ul, torch.cat([u, uls.pop()], dim=1))
                i += 1
            if level < self.LEVELS - 1:
                u, ul = self.double_u[level](u), self.double_ul[level](ul)
        out: Tensor = self.last(concat_elu(ul))
        return out


def negative_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Nats of each image under the mixtures: logits `(n, P * K, H, W)`, images in `[-1, 1]`, to `(n,)`."""
    n, image_channels, height, width = x.shape
    mixtures = logits.shape[1] // PARAMETERS[image_channels]
    weights = logits[:, :mixtures]
    rest = logits[:, mixtures:].reshape(n, image_channels, -1, height, width)
    means, log_scales, *links = torch.split(rest, mixtures, dim=2)
    log_scales = log_scales.clamp(min=-7)
    values = x[:, :, None].expand(-1, -1, mixtures, -1, -1)
    if links:
        link, red, green = links[0].tanh(), values[:, 0], values[:, 1]
        means = torch.stack(
            [means[:, 0], means[:, 1] + link[:, 0] * red, means[:, 2] + link[:, 1] * red + link[:, 2] * green], dim=1
        )
    centred, precision = values - means, torch.exp(-log_scales)
    above, below = precision * (centred + 1 / 255), precision * (centred - 1 / 255)
    inside = (torch.sigmoid(above) - torch.sigmoid(below)).clamp(min=1e-12).log()
    # Where the probability of the bin underflows, the density at its middle replaces it.
    middle = precision * centred
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(torch.sigmoid(above) - torch.sigmoid(below) > 1e-5, inside, density)
    log_prob = torch.where(values < -0.999, above - F.softplus(above), inside)
    log_prob = torch.where(values > 0.999, -F.softplus(below), log_prob)
    total = log_prob.sum(dim=1) + weights.log_softmax(dim=1)
    return -total.logsumexp(dim=1).sum(dim=(1, 2))


@dataclass(kw_only=True, repr=False, eq=False)
class PixelCNN(PixelBaseline):
    """Negative log-likelihood of an autoregressive model, minus the image's complexity.

    Args:
        channels: channels of each of the network's streams.
        blocks: residual blocks at each resolution.
        mixtures: logistics for each pixel.
        dropout: rate of dropout inside the blocks.
        epochs: epochs of training; the paper's are 150 (appendix B.2).
        batch_size: images in a training step.
        lr: learning rate; the paper's is 5e-4.
    """

    name = "pixelcnn++"

    channels: int = 160
    blocks: int = 5
    mixtures: int = 10
    dropout: float = 0.5
    epochs: int = 150
    batch_size: int = 32
    lr: float = 5e-4

    def _build(self, classes: int) -> nn.Module:
        self._check_size(4)
        return PixelCNNNetwork(self.channels, self.blocks, self.mixtures, self.dropout, self.image_channels)

    def _bits(self, pixels: Tensor) -> Tensor:
        """Bits per dimension of images: uint8 `(n, C, H, W)` to `(n,)`."""
        x = pixels.float() / 127.5 - 1
        return negative_log_likelihood(self.network_(x).float(), x) / (x[0].numel() * math.log(2))

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        settings = TrainingSettings(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, ema_decay=0.999)
        also = (torch.tensor(self.dropout),)  # not seen in the network's tensors
        self._train(pixels, lambda samples, _: self._bits(samples).mean(), settings, trainer, also=also)

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        return self._bits(pixels).cpu() - complexity_of(pixels)
