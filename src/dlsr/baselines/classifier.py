"""Detectors on the logits of a classifier: MSP, Energy, DICE and ASH-S (scores by pytorch-ood).

The classifier is a linear head on the pretrained encoder's penultimate features, trained on ID labels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.encoded import EncodedBaseline
from dlsr.baselines.pytorch_ood import pytorch_ood_detector
from dlsr.config import TrainingSettings
from dlsr.training.loop import Draws, Trainer


@dataclass(kw_only=True, repr=False, eq=False)
class ClassifierBaseline(EncodedBaseline):
    """Base: an encoder with a linear head trained on ID labels (linear probe).

    Args:
        epochs: epochs of training the head.
        batch_size: samples in a training step.
        lr: learning rate, falling to zero like a cosine.
    """

    needs_labels = True
    family = "linear head"
    output = "penultimate"
    share: ClassVar[float] = 0.0
    """The sparsity p of DICE, and the percentile of ASH."""

    epochs: int = 30
    batch_size: int = 256
    lr: float = 1e-3

    def _build(self, classes: int) -> nn.Module:
        c = self._c()
        head = nn.Linear(c, classes)
        head.register_buffer("mean_feature", torch.zeros(c))
        return head

    def _learn(self, features: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        assert labels is not None
        classes = labels.to(features.device)

        def loss(indices: Tensor, draws: Draws) -> Tensor:
            return F.cross_entropy(self.network_(features[indices]), classes[indices])

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, lr_decay="cosine", ema_decay=0.999
        )
        indices = torch.arange(len(features), device=features.device)
        self._train(indices, loss, settings, trainer, also=(features, classes))
        self.network_.get_buffer("mean_feature").copy_(features.mean(dim=0))

    def _scores(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self._score(features)

    def _score(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class MSP(ClassifierBaseline):
    """Maximum softmax probability (Hendrycks & Gimpel 2017), negated."""

    name = "msp"

    def _score(self, features: Tensor) -> Tensor:
        scores: Tensor = pytorch_ood_detector("MaxSoftmax").score(self.network_(features))
        return scores


class Energy(ClassifierBaseline):
    """Energy of the logits (Liu et al. 2020)."""

    name = "energy"

    def _score(self, features: Tensor) -> Tensor:
        scores: Tensor = pytorch_ood_detector("EnergyBased").score(self.network_(features))
        return scores


class DICE(ClassifierBaseline):
    """Energy of the logits, from only the weights that contribute most (Sun & Li 2022)."""

    name = "dice"
    share = 0.9

    def _score(self, features: Tensor) -> Tensor:
        head: Any = self.network_
        dice = pytorch_ood_detector("DICE")(None, head.weight, head.bias, self.share)
        # DICE uses only the mean of the training features, so the mean is all that is kept.
        dice.fit_features(head.mean_feature[None].cpu(), torch.zeros(1).long())
        scores: Tensor = dice.predict_features(features.cpu())
        return scores


class ASHS(ClassifierBaseline):
    """Energy after activation shaping (Djurisic et al. 2022), on the pooled features."""

    name = "ash-s"
    share = 0.65

    def _score(self, features: Tensor) -> Tensor:
        def head(maps: Tensor) -> Tensor:
            logits: Tensor = self.network_(maps.flatten(1))
            return logits

        ash = pytorch_ood_detector("ASH")(None, head, variant="ash-s", percentile=self.share)
        scores: Tensor = ash.predict_feature_maps(features[:, :, None, None])
        return scores
