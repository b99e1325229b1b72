"""DiffGuard (Gao et al. 2023, "DiffGuard: semantic mismatch-guided OOD detection")."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.base import Watch
from dlsr.baselines.diffusion import PixelDiffusion, T, scaled
from dlsr.baselines.networks import SmallResNet
from dlsr.baselines.perception import Perception
from dlsr.config import TrainingSettings
from dlsr.method.diffusion import predicted_noise, skipping_steps
from dlsr.method.schedule import cosine_alpha_bar
from dlsr.training.loop import Draws


@dataclass(kw_only=True, repr=False, eq=False)
class DiffGuard(PixelDiffusion):
    """Redraw the image as what a classifier takes it for; the difference between the two is the score.

    The image is inverted to noise by DDIM, then restored under the guidance of a classifier towards its own
    prediction (on the guess of the clean image, as for the paper's CIFAR-10 benchmark). An ID image stays what
    it is; an OOD image is drawn towards a class that it does not show. The distance is perceptual, as in LMD.

    Args:
        guidance: scale of the classifier's gradient.
        start: share of the noise levels that the image is inverted through.
        steps: DDIM steps each way.
        classifier_epochs: of training the classifier.
    """

    name = "diffguard"
    needs_labels = True

    guidance: float = 10.0
    start: float = 0.6
    steps: int = 50
    classifier_epochs: int = 100

    def _build(self, classes: int) -> nn.ModuleDict:
        network = super()._build(classes)
        network["classifier"] = SmallResNet(self.width, classes)
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, watch: Watch) -> None:
        assert labels is not None
        classes = labels.to(pixels.device)
        super()._learn(pixels, labels, watch)

        def loss(rows: Tensor, draws: Draws) -> Tensor:
            logits = self.network_["classifier"](scaled(pixels[rows]))
            return F.cross_entropy(logits, classes[rows])

        settings = TrainingSettings(
            epochs=self.classifier_epochs, batch_size=self.batch_size, lr=1e-3, lr_decay="cosine", ema_decay=0.999
        )
        log = self.log_
        own = watch.checkpoint.with_suffix(".classifier") if watch.checkpoint else None
        self._train(
            torch.arange(len(pixels), device=pixels.device),
            loss,
            settings,
            replace(watch, checkpoint=own),
            network=self.network_["classifier"],
            also=(pixels, classes),
        )
        self.log_ = [*log, *self.log_]

    def _scores(self, pixels: Tensor) -> Tensor:
        x0 = scaled(pixels)
        alpha_bar = cosine_alpha_bar(T).to(x0.device)
        times = skipping_steps(round(self.start * T), self.steps)
        with torch.no_grad():
            label = self.network_["classifier"](x0).argmax(dim=1)
            state = x0
            for t, t_next in zip([1, *times[:0:-1]], times[::-1], strict=True):
                state = self._step(state, self._x0_of(state, t, alpha_bar), t, t_next, alpha_bar)
        for t, t_next in zip(times, [*times[1:], 0], strict=True):
            guess = self._guided(state, t, label, alpha_bar)
            state = guess if t_next == 0 else self._step(state, guess, t, t_next, alpha_bar)
        return Perception.shared(str(pixels.device)).distance(x0, state)

    def _step(self, state: Tensor, guess: Tensor, t: int, t_next: int, alpha_bar: Tensor) -> Tensor:
        """DDIM without noise (Eq. 3 with eta = 0), which goes either way in time."""
        noise = predicted_noise(state, guess, t, alpha_bar)
        return alpha_bar[t_next].sqrt() * guess + (1 - alpha_bar[t_next]).sqrt() * noise

    def _guided(self, state: Tensor, t: int, label: Tensor, alpha_bar: Tensor) -> Tensor:
        """The guess of the clean image, moved towards the label."""
        with torch.no_grad():
            guess = self._x0_of(state, t, alpha_bar)
        with torch.enable_grad():
            leaf = guess.detach().requires_grad_()
            likelihood = -F.cross_entropy(self.network_["classifier"](leaf), label, reduction="sum")
            (gradient,) = torch.autograd.grad(likelihood, leaf)
        return (guess + self.guidance * (1 - alpha_bar[t]).sqrt() * gradient).clamp(-1, 1)
