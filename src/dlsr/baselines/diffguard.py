"""DiffGuard (Gao et al. 2023, "DiffGuard: semantic mismatch-guided OOD detection")."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.diffusion import ALPHA_BAR, PixelDiffusion, T, clean_image, scaled
from dlsr.baselines.networks import SmallResNet, moved
from dlsr.config import TrainingSettings
from dlsr.method.diffusion import restore, skipping_steps
from dlsr.training.loop import Draws, Trainer

DROPPED = 0.1
"""Share of the labels that training hides, so that the U-Net also learns to do without (Ho & Salimans 2022)."""


@dataclass(kw_only=True, repr=False, eq=False)
class DiffGuard(PixelDiffusion):
    """Distance of an image to its restoration as an image of the class that a classifier predicts for it.

    The image is inverted to noise by DDIM without a class, then restored with classifier-free guidance towards the
    class (the paper's section 3.2.2, and its CIFAR-10 benchmark). Guidance is limited to where the class activation map
    is high; elsewhere the image is restored without a class. An ID image changes little; an OOD image moves towards a
    class that it does not show. The distance is that of the classifier's logits in the L1 norm, "as in" DiffNB (section
    4.1), whose code first divides logits by their L2 norm.

    Args:
        guidance: its scale, `omega` in Eq. 5; the default is that of the paper's code for its latent diffusion model,
            as that for CIFAR-10 is not published.
        cut: guidance is given where the activation map, whose maximum is 1, is above this (fig. 7).
        start: share of the noise levels that the image is inverted through.
        steps: DDIM steps in each direction.
        classifier_epochs: epochs of training the classifier.
    """

    name = "diffguard"
    family = "conditional u-net"
    conditional = True
    needs_labels = True

    guidance: float = 10.0
    cut: float = 0.2
    start: float = 1.0
    steps: int = 25
    classifier_epochs: int = 100

    def _build(self, classes: int) -> nn.ModuleDict:
        network = super()._build(classes)
        network["classifier"] = SmallResNet(self.width, classes, self.image_channels)
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        assert labels is not None
        classes = labels.to(pixels.device)
        indices = torch.arange(len(pixels), device=pixels.device)

        def denoising_loss(indices: Tensor, draws: Draws) -> Tensor:
            hidden = draws.uniform() < DROPPED
            return self._denoising_loss(pixels[indices], draws, classes[indices].where(~hidden, self.classes_))

        unet = self.network_["unet"]
        self._train(indices, denoising_loss, self._training(), trainer, network=unet, also=(pixels, classes))

        def loss(indices: Tensor, draws: Draws) -> Tensor:
            logits = self.network_["classifier"](scaled(moved(pixels[indices], draws)))
            return F.cross_entropy(logits, classes[indices])

        settings = TrainingSettings(
            epochs=self.classifier_epochs, batch_size=self.batch_size, lr=1e-3, lr_decay="cosine", ema_decay=0.999
        )
        log = self.log_
        own = trainer.checkpoint.with_suffix(".classifier") if trainer.checkpoint else None
        self._train(
            indices,
            loss,
            settings,
            replace(trainer, checkpoint=own),
            network=self.network_["classifier"],
            also=(pixels, classes),
        )
        self.log_ = [*log, *self.log_]

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        x0 = scaled(pixels)
        classifier = self.network_["classifier"]
        assert isinstance(classifier, SmallResNet)
        logits = classifier(x0)
        label = logits.argmax(dim=1)
        scale = self.guidance * (classifier.activation_map(x0, label) > self.cut)
        restored = self._restored_as(x0, label, scale)
        distance: Tensor = (F.normalize(classifier(restored), dim=1) - F.normalize(logits, dim=1)).abs().sum(dim=1)
        return distance

    def _restored_as(self, x0: Tensor, label: Tensor, scale: Tensor) -> Tensor:
        """Images inverted to noise without a class, and restored as a class, with guidance as in `_guided_noise`."""
        alpha_bar = ALPHA_BAR.to(x0.device)
        times = skipping_steps(round(self.start * T), self.steps)
        state = x0
        for t, t_next in zip([0, *times[:0:-1]], times[::-1], strict=True):
            # Eq. 6: a DDIM step backwards, with the noise at its end, as in the paper's code.
            noise = self._noise_in(state, t_next, self._no_class(state))
            clean = (state - (1 - alpha_bar[t]).sqrt() * noise) / alpha_bar[t].sqrt()
            state = alpha_bar[t_next].sqrt() * clean + (1 - alpha_bar[t_next]).sqrt() * noise

        def denoiser(xt: Tensor, t: int) -> Tensor:
            return clean_image(xt, self._guided_noise(xt, t, label, scale), t, alpha_bar)

        return restore(denoiser, state, times, alpha_bar)

    def _no_class(self, xt: Tensor) -> Tensor:
        return torch.full((len(xt),), self.classes_, device=xt.device)

    def _guided_noise(self, xt: Tensor, t: int, label: Tensor, scale: Tensor) -> Tensor:
        """The noise predicted with guidance (Eq. 5) of a scale for each pixel, shape `(n, 1, H, W)`."""
        labels = torch.cat([self._no_class(xt), label])
        without, towards = self._noise_in(torch.cat([xt, xt]), t, labels).chunk(2)
        return without + scale * (towards - without)
