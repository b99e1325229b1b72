"""DiffGuard (Gao et al. 2023, "DiffGuard: semantic mismatch-guided OOD detection")."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.diffusion import ALPHA_BAR, PixelDiffusion, T, scaled
from dlsr.baselines.networks import SmallResNet
from dlsr.config import TrainingSettings
from dlsr.method.diffusion import predicted_noise, skipping_steps
from dlsr.training.loop import Draws, Trainer


@dataclass(kw_only=True, repr=False, eq=False)
class DiffGuard(PixelDiffusion):
    """Distance of an image to its restoration under the guidance of a classifier.

    The image is inverted to noise by DDIM, then restored with guidance towards the class that the classifier predicts
    for it (section 3.2.1; the gradient is taken at the estimate of the clean image, "clean grad"). An ID image changes
    little; an OOD image moves towards a class that it does not show. The distance is that of the logits in the L1 norm,
    as in the paper's CIFAR-10 benchmark (section 4.1). Unlike the paper, inversion ends at a fixed level, that at which
    the paper sets its thresholds, and the gradient is that of the whole image instead of the sum over random cutouts.

    Args:
        guidance: scale of the classifier's gradient; the paper's code has 3 for each of 8 cutouts.
        start: share of the noise levels that the image is inverted through.
        steps: DDIM steps in each direction.
        classifier_epochs: epochs of training the classifier.
    """

    name = "diffguard"
    needs_labels = True

    guidance: float = 24.0
    start: float = 0.6
    steps: int = 50
    classifier_epochs: int = 100

    def _build(self, classes: int) -> nn.ModuleDict:
        network = super()._build(classes)
        network["classifier"] = SmallResNet(self.width, classes, self.image_channels)
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        assert labels is not None
        classes = labels.to(pixels.device)
        super()._learn(pixels, labels, trainer)

        def loss(indices: Tensor, draws: Draws) -> Tensor:
            logits = self.network_["classifier"](scaled(pixels[indices]))
            return F.cross_entropy(logits, classes[indices])

        settings = TrainingSettings(
            epochs=self.classifier_epochs, batch_size=self.batch_size, lr=1e-3, lr_decay="cosine", ema_decay=0.999
        )
        log = self.log_
        own = trainer.checkpoint.with_suffix(".classifier") if trainer.checkpoint else None
        self._train(
            torch.arange(len(pixels), device=pixels.device),
            loss,
            settings,
            replace(trainer, checkpoint=own),
            network=self.network_["classifier"],
            also=(pixels, classes),
        )
        self.log_ = [*log, *self.log_]

    def _scores(self, pixels: Tensor) -> Tensor:
        x0 = scaled(pixels)
        alpha_bar = ALPHA_BAR.to(x0.device)
        times = skipping_steps(round(self.start * T), self.steps)
        with torch.no_grad():
            logits = self.network_["classifier"](x0)
            label = logits.argmax(dim=1)
            state = x0
            for t, t_next in zip([1, *times[:0:-1]], times[::-1], strict=True):
                state = self._step(state, self._x0_of(state, t, alpha_bar), t, t_next, alpha_bar)
        for t, t_next in zip(times, [*times[1:], 0], strict=True):
            estimate = self._guided(state, t, label, alpha_bar)
            state = estimate if t_next == 0 else self._step(state, estimate, t, t_next, alpha_bar)
        with torch.no_grad():
            distance: Tensor = (self.network_["classifier"](state) - logits).abs().sum(dim=1)
        return distance

    def _step(self, state: Tensor, estimate: Tensor, t: int, t_next: int, alpha_bar: Tensor) -> Tensor:
        """A DDIM step without noise (Eq. 3 with eta = 0), forwards or backwards in time."""
        noise = predicted_noise(state, estimate, t, alpha_bar)
        return alpha_bar[t_next].sqrt() * estimate + (1 - alpha_bar[t_next]).sqrt() * noise

    def _guided(self, state: Tensor, t: int, label: Tensor, alpha_bar: Tensor) -> Tensor:
        """The estimate of the clean image, moved towards the label: Eq. 4 puts the gradient into the noise."""
        with torch.no_grad():
            estimate = self._x0_of(state, t, alpha_bar)
        with torch.enable_grad():
            leaf = estimate.detach().requires_grad_()
            likelihood = -F.cross_entropy(self.network_["classifier"](leaf), label, reduction="sum")
            (gradient,) = torch.autograd.grad(likelihood, leaf)
        return (estimate + self.guidance * (1 - alpha_bar[t]) / alpha_bar[t].sqrt() * gradient).clamp(-1, 1)
