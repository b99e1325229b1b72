"""A small residual network for the baselines on pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.training.loop import Draws

SHIFT = 4


class SmallResNet(nn.Module):
    """A residual network for 32-pixel images.

    It uses group norm, which has no running statistics, with standardised weights, without which it learns slowly.

    Args:
        width: channels of the first stage; doubled at each of two halvings.
        outputs: outputs for each image.
        image_channels: `C`, 1 for grey images and 3 for colour.
        blocks: residual blocks in each of three stages.
    """

    def __init__(self, width: int, outputs: int, image_channels: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.features = 4 * width
        layers: list[nn.Module] = [_Conv(image_channels, width, 3)]
        before = width
        for stage in range(3):
            after = width * 2**stage
            for i in range(blocks):
                layers.append(_Block(before, after, 2 if stage and i == 0 else 1))
                before = after
        self.body = nn.Sequential(*layers, nn.GroupNorm(_groups(before), before), nn.ReLU())
        self.head: nn.Module = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images in `[-1, 1]`, shape `(n, C, H, W)`, to shape `(n, outputs)`."""
        out: Tensor = self.head(self.embed(images))
        return out

    def embed(self, images: Tensor) -> Tensor:
        """The pooled features before the head, shape `(n, 4 * width)`."""
        features: Tensor = self.body(images).mean(dim=(2, 3))
        return features

    def activation_map(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Where an output comes from (class activation map, Zhou et al. 2016): 0 at its minimum, 1 at its maximum.

        Args:
            images: as in `forward`.
            outputs: one for each image, shape `(n,)`.

        Returns:
            Shape `(n, 1, H, W)`. Where the output is lowered counts as where it does not come from.
        """
        maps = self.body(images)
        assert isinstance(self.head, nn.Linear)
        activation = (maps * self.head.weight[outputs][:, :, None, None]).sum(dim=1, keepdim=True).clamp(min=0)
        larger = F.interpolate(activation, size=images.shape[-2:], mode="bilinear")
        low, high = (edge(larger, dim=(2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
        return (larger - low) / (high - low).clamp(min=1e-6)


def moved(images: Tensor, draws: Draws) -> Tensor:
    """Images shifted by up to `SHIFT` pixels each way, and half of them mirrored, as training on CIFAR-10 usually does.

    Shape `(n, C, H, W)`, as the result; black comes in from outside.
    """
    windows = F.pad(images, [SHIFT] * 4).unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    rows, columns = (draws.integers(0, 2 * SHIFT + 1) for _ in range(2))
    shifted = windows[torch.arange(len(images), device=images.device), :, rows, columns]
    return torch.where((draws.uniform() < 0.5)[:, None, None, None], shifted.flip(3), shifted)


class _Conv(nn.Conv2d):
    """A convolution whose weights have a mean of 0 and a variance of 1 / inputs for each output.

    Weight standardisation (Qiao et al. 2019), scaled as by Brock et al. 2021.
    """

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        centred = flat - flat.mean(dim=1, keepdim=True)
        standard = centred / (centred.square().sum(dim=1, keepdim=True) + 1e-4).sqrt()
        return F.conv2d(x, standard.view_as(self.weight), None, self.stride, self.padding)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(before), before)
        self.conv_in = _Conv(before, after, 3, stride)
        self.norm_out = nn.GroupNorm(_groups(after), after)
        self.conv_out = _Conv(after, after, 3)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else _Conv(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.relu(self.norm_in(x)))
        out: Tensor = self.shortcut(x) + self.conv_out(F.relu(self.norm_out(h)))
        return out


def _groups(channels: int) -> int:
    return max(group for group in (8, 4, 2, 1) if channels % group == 0)
