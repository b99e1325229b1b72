"""A diffusion model of pixels, the base of DDPM, LMD and DiffGuard."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.pixels import PixelBaseline
from dlsr.config import TrainingSettings
from dlsr.errors import MissingExtraError
from dlsr.method.diffusion import distort, restore
from dlsr.method.schedule import scaled_linear_alpha_bar
from dlsr.training.loop import Draws, Trainer

T = 1000
"""Noise levels."""
ALPHA_BAR = scaled_linear_alpha_bar(T)
"""Their schedule, shape `(T + 1,)`: that of DDPM-OOD's code, and close to the linear ones of LMD's and DiffGuard's."""


@dataclass(kw_only=True, repr=False, eq=False)
class PixelDiffusion(PixelBaseline):
    """Base of detectors with a U-Net (diffusers) that predicts the noise in a distorted image (Ho et al. 2020).

    Args:
        width: channels of the U-Net's first stage.
        epochs: epochs of training; the paper's are 350 (appendix B.2).
        batch_size: images in a training step.
        lr: learning rate.
    """

    family = "u-net"
    conditional: ClassVar[bool] = False
    """Whether the U-Net also takes a class; the number after the last class stands for none."""
    scoring_batch = 32

    width: int = 128
    epochs: int = 350
    batch_size: int = 128
    lr: float = 2e-4

    network_: nn.ModuleDict = field(init=False)

    def _build(self, classes: int) -> nn.ModuleDict:
        self._check_size(4)
        try:
            from diffusers import UNet2DModel  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise MissingExtraError("diffusers", "bench") from None
        unet: Any = UNet2DModel
        network = unet(
            sample_size=self.size,
            in_channels=self.image_channels,
            out_channels=self.image_channels,
            layers_per_block=2 if self.width >= 64 else 1,
            block_out_channels=(self.width, 2 * self.width, 2 * self.width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2 * self.width,  # a single head, as in Ho et al.
            norm_num_groups=min(32, self.width // 2),
            num_class_embeds=classes + 1 if self.conditional else None,
        )
        return nn.ModuleDict({"unet": network})

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        def loss(samples: Tensor, draws: Draws) -> Tensor:
            return self._denoising_loss(samples, draws)

        self._train(pixels, loss, self._training(), trainer, network=self.network_["unet"])

    def _training(self) -> TrainingSettings:
        """Of the U-Net."""
        return TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0, ema_decay=0.999
        )

    def _denoising_loss(self, pixels: Tensor, draws: Draws, label: Tensor | None = None) -> Tensor:
        """Mean squared error of the predicted noise: uint8 `(n, C, H, W)`, and classes `(n,)`, to `()`."""
        x0 = scaled(pixels)
        t = draws.integers(1, T + 1)
        noise = draws.normal(*x0.shape[1:])
        xt = distort(x0.flatten(1), t, ALPHA_BAR.to(x0.device), noise.flatten(1)).reshape(x0.shape)
        return F.mse_loss(self._noise_in(xt, t, label), noise)

    def _noise_in(self, xt: Tensor, t: int | Tensor, label: Tensor | None = None) -> Tensor:
        """The predicted noise: `(n, C, H, W)`, times `(n,)` or one for all, and classes `(n,)`, to `(n, C, H, W)`."""
        noise: Tensor = self.network_["unet"](xt, t, class_labels=label).sample
        return noise

    def _x0_of(self, xt: Tensor, t: int, alpha_bar: Tensor) -> Tensor:
        """The clean image in `[-1, 1]` that follows from the noise predicted for `xt`."""
        return clean_image(xt, self._noise_in(xt, t), t, alpha_bar)

    def _restored(self, x0: Tensor, times: Sequence[int], noise: Tensor) -> Tensor:
        """Distort to the first of the falling times and restore along all of them by DDIM with eta = 0."""
        alpha_bar = ALPHA_BAR.to(x0.device)
        xt = distort(x0, times[0], alpha_bar, noise)
        return restore(lambda state, t: self._x0_of(state, t, alpha_bar), xt, times, alpha_bar)


def clean_image(xt: Tensor, noise: Tensor, t: int, alpha_bar: Tensor) -> Tensor:
    """The image in `[-1, 1]` that is `xt` without its noise at `t`, shape `(n, C, H, W)`."""
    return ((xt - (1 - alpha_bar[t]).sqrt() * noise) / alpha_bar[t].sqrt()).clamp(-1, 1)


def scaled(pixels: Tensor) -> Tensor:
    """Pixel values of 0 to 255 to `[-1, 1]`, in the same shape."""
    return pixels.float() / 127.5 - 1
