"""SimCLR (Chen et al. 2020) trained on the ID images; Mahalanobis or nearest-neighbour distance of its features.

Features are those before the projection, of unit length, as in SSD (Sehwag et al. 2021).

Training uses `dlsr.training.loop`, not lightly, which would bring PyTorch Lightning. The scores are pytorch-ood's.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.diffusion import scaled
from dlsr.baselines.networks import SmallResNet
from dlsr.baselines.pixels import PixelBaseline
from dlsr.baselines.pytorch_ood import pytorch_ood_detector
from dlsr.config import TrainingSettings
from dlsr.training.loop import Draws, Trainer

REFERENCES = 20_000
"""Distances are measured to at most this many training images."""


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross entropy: `n` first views, then `n` second views, shape `(2 * n, d)`, to `()`."""
    z = F.normalize(z, dim=1)
    similar = z @ z.T / temperature
    similar.fill_diagonal_(-torch.inf)
    n = len(z) // 2
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similar, partner)


def augmented(pixels: Tensor, draws: Draws) -> Tensor:
    """SimCLR's augmentations for small images, drawn for each image: uint8 `(n, C, H, W)` to `[-1, 1]`.

    Random resized crop, horizontal flip, colour jitter (brightness, contrast, saturation, hue) and greyscale, of the
    paper's strength for CIFAR-10, where it has no blur either (appendix B.9). Crops are squares of a fifth of the area
    or more, where the paper's are of 8 % or more, and of other aspect ratios too.
    """

    def uniform(low: float, high: float) -> Tensor:
        return draws.uniform() * (high - low) + low

    side = uniform(0.2, 1.0).sqrt()
    shift_x, shift_y = ((1 - side) * uniform(-1, 1) for _ in range(2))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(side)
    rows = [torch.stack([side * flip, zero, shift_x], dim=1), torch.stack([zero, side, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    images = F.grid_sample(pixels.float() / 255, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    jittered = images * uniform(0.6, 1.4)[:, None, None, None]
    mean = jittered.mean(dim=(1, 2, 3), keepdim=True)
    jittered = (jittered - mean) * uniform(0.6, 1.4)[:, None, None, None] + mean
    grey = jittered.mean(dim=1, keepdim=True)
    jittered = (jittered - grey) * uniform(0.6, 1.4)[:, None, None, None] + grey
    if images.shape[1] == 3:
        jittered = turned(jittered, uniform(-0.1, 0.1) * 2 * torch.pi)
    images = torch.where((uniform(0, 1) < 0.8)[:, None, None, None], jittered, images)
    grey = images.mean(dim=1, keepdim=True)
    images = torch.where((uniform(0, 1) < 0.2)[:, None, None, None], grey.expand_as(images), images)
    return images.clamp(0, 1) * 2 - 1


def turned(images: Tensor, angle: Tensor) -> Tensor:
    """Images `(n, 3, H, W)` whose hues are turned by angles, shape `(n,)`, in radians: rotated about the grey axis."""
    grey = torch.full((3, 3), 1 / 3, device=images.device)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=images.device) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    matrices = grey + cos * (torch.eye(3, device=images.device) - grey) + sin * across
    return torch.einsum("nij,njhw->nihw", matrices, images)


@dataclass(kw_only=True, repr=False, eq=False)
class SimCLR(PixelBaseline):
    """Base of the two detectors on SimCLR features.

    Args:
        width: channels of the network's first stage.
        projection: dimension of the vectors that the loss compares.
        temperature: temperature of the loss.
        epochs: epochs of training.
        batch_size: images in a training step; each gives two views.
        lr: learning rate, falling to zero like a cosine.
        neighbours: `k`; only for KNN.
    """

    family = "simclr"
    scoring_batch = 256

    width: int = 64
    projection: int = 128
    temperature: float = 0.5
    epochs: int = 500
    batch_size: int = 512
    lr: float = 1e-3
    neighbours: int = 50

    network_: SmallResNet = field(init=False)

    def _build(self, classes: int) -> SmallResNet:
        network = SmallResNet(self.width, self.projection, self.image_channels)
        c = network.features
        network.head = nn.Sequential(nn.Linear(c, c), nn.ReLU(), nn.Linear(c, self.projection))
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        def loss(samples: Tensor, draws: Draws) -> Tensor:
            views = torch.cat([augmented(samples, draws) for _ in range(2)])
            return nt_xent(self.network_(views).float(), self.temperature)

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, lr_decay="cosine", ema_decay=0.999
        )
        self._train(pixels, loss, settings, trainer, also=(torch.tensor(self.temperature),))
        self.network_.eval()
        chosen = self._random_subset(pixels, REFERENCES)
        self._set_references(torch.cat([self._embed(batch) for batch in torch.split(chosen, self.scoring_batch)]))

    def _set_references(self, features: Tensor) -> None:
        self.network_.register_buffer("references", features)
        self._scorer = self._fitted_scorer(features.cpu())

    def _restore(self, tensors: dict[str, Tensor], classes: int) -> None:
        self.network_ = self._build(classes)
        self.network_.register_buffer("references", torch.empty_like(tensors["references"]))
        self.network_.load_state_dict(tensors)
        self._scorer = self._fitted_scorer(tensors["references"])

    def _fitted_scorer(self, features: Tensor) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def _embed(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.network_.embed(scaled(pixels)), dim=1)

    def _scores(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self._scorer.predict_features(self._embed(pixels).cpu())
        return scores


class SimCLRMahalanobis(SimCLR):
    """Mahalanobis distance to a single Gaussian, since there are no labels (SSD, Sehwag et al. 2021)."""

    name = "simclr+mahalanobis"

    def _fitted_scorer(self, features: Tensor) -> Any:
        return pytorch_ood_detector("Mahalanobis")(None).fit_features(features, torch.zeros(len(features)).long())


class SimCLRKNN(SimCLR):
    """Distance of features to the k-th nearest training image (Sun et al. 2022)."""

    name = "simclr+knn"

    def _fitted_scorer(self, features: Tensor) -> Any:
        knn = pytorch_ood_detector("KNN")(None, k=min(self.neighbours, len(features)))
        return knn.fit_features(features, torch.zeros(len(features)).long())
