"""Detectors on the logits of a classifier: MSP, Energy, DICE and ASH-S (scores by pytorch-ood).

The classifier is trained on ID labels. It is a linear head on the pretrained encoder's penultimate features, or a small
residual network of its own.
"""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.base import Baseline
from dlsr.baselines.diffusion import scaled
from dlsr.baselines.encoded import EncodedBaseline
from dlsr.baselines.networks import SmallResNet, moved
from dlsr.baselines.pixels import PixelBaseline
from dlsr.baselines.pytorch_ood import pytorch_ood_detector
from dlsr.config import TrainingSettings
from dlsr.training.loop import Draws, Trainer


class Head(nn.Linear):
    """The last layer of a classifier, with the mean of its input over the training images, which DICE needs."""

    mean_feature: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("mean_feature", torch.zeros(features))


def msp(head: Head, features: Tensor) -> Tensor:
    """Maximum softmax probability (Hendrycks & Gimpel 2017), negated: `(n, c)` to `(n,)`, larger = more OOD."""
    scores: Tensor = pytorch_ood_detector("MaxSoftmax").score(head(features))
    return scores


def energy(head: Head, features: Tensor) -> Tensor:
    """Energy of the logits (Liu et al. 2020): `(n, c)` to `(n,)`, larger = more OOD."""
    scores: Tensor = pytorch_ood_detector("EnergyBased").score(head(features))
    return scores


def dice(head: Head, features: Tensor, sparsity: float = 0.9) -> Tensor:
    """Energy of the logits, from only the weights that contribute most (Sun & Li 2022): as `energy`."""
    detector = pytorch_ood_detector("DICE")(None, head.weight, head.bias, sparsity)
    # DICE uses only the mean of the training features, so the mean is all that is kept.
    detector.fit_features(head.mean_feature[None].cpu(), torch.zeros(1).long())
    scores: Tensor = detector.predict_features(features.cpu())
    return scores


def ash_s(head: Head, features: Tensor, percentile: float = 0.65) -> Tensor:
    """Energy after activation shaping (Djurisic et al. 2022), on the pooled features, as in the authors' code.

    Shapes as for `energy`.
    """

    def after_shaping(maps: Tensor) -> Tensor:
        logits: Tensor = head(maps.flatten(1))
        return logits

    detector = pytorch_ood_detector("ASH")(None, after_shaping, variant="ash-s", percentile=percentile)
    scores: Tensor = detector.predict_feature_maps(features[:, :, None, None])
    return scores


@dataclass(kw_only=True, repr=False, eq=False)
class ClassifierBaseline(Baseline):
    """Base: a classifier trained on ID labels, and a score of the input of its last layer.

    Args:
        epochs: epochs of training.
        batch_size: samples in a training step.
        lr: learning rate, falling to zero like a cosine.
    """

    needs_labels = True

    epochs: int = 30
    batch_size: int = 256
    lr: float = 1e-3

    @property
    @abstractmethod
    def _head(self) -> Head:
        """The last layer."""

    @abstractmethod
    def _features(self, samples: Tensor) -> Tensor:
        """The input of the last layer: output of `_tensor`, shape `(n, ..)`, to `(n, c)`."""

    def _varied(self, samples: Tensor, draws: Draws) -> Tensor:
        """Samples as training sees them."""
        return samples

    @staticmethod
    @abstractmethod
    def _score(head: Head, features: Tensor) -> Tensor:
        """Scores of the input of the last layer: shape `(n, c)` to `(n,)`."""

    def _learn(self, samples: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        assert labels is not None
        classes = labels.to(samples.device)

        def loss(indices: Tensor, draws: Draws) -> Tensor:
            return F.cross_entropy(self._head(self._features(self._varied(samples[indices], draws))), classes[indices])

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, lr_decay="cosine", ema_decay=0.999
        )
        indices = torch.arange(len(samples), device=samples.device)
        self._train(indices, loss, settings, trainer, also=(samples, classes))
        with torch.no_grad():
            sums = [self._features(batch).sum(dim=0) for batch in torch.split(samples, self.scoring_batch)]
        self._head.mean_feature.copy_(torch.stack(sums).sum(dim=0) / len(samples))

    def _scores(self, samples: Tensor) -> Tensor:
        with torch.no_grad():
            return self._score(self._head, self._features(samples))


@dataclass(kw_only=True, repr=False, eq=False)
class LinearProbe(ClassifierBaseline, EncodedBaseline):
    """Base: the frozen encoder with a linear head."""

    family = "linear head"
    output = "penultimate"

    network_: Head = field(init=False)

    @property
    def _head(self) -> Head:
        return self.network_

    def _build(self, classes: int) -> Head:
        return Head(self._c(), classes)

    def _features(self, samples: Tensor) -> Tensor:
        return samples


@dataclass(kw_only=True, repr=False, eq=False)
class TrainedClassifier(ClassifierBaseline, PixelBaseline):
    """Base: a small residual network, all of which is trained.

    Args:
        width: channels of the network's first stage; the last layer has four times as many inputs.
    """

    family = "classifier"
    scoring_batch = 256

    width: int = 64
    epochs: int = 100
    batch_size: int = 128

    network_: SmallResNet = field(init=False)

    @property
    def _head(self) -> Head:
        head = self.network_.head
        assert isinstance(head, Head)
        return head

    def _build(self, classes: int) -> SmallResNet:
        network = SmallResNet(self.width, classes, self.image_channels)
        network.head = Head(network.features, classes)
        return network

    def _features(self, samples: Tensor) -> Tensor:
        return self.network_.embed(scaled(samples))

    def _varied(self, samples: Tensor, draws: Draws) -> Tensor:
        return moved(samples, draws)


class MSP(LinearProbe):
    """Maximum softmax probability of a linear head."""

    name = "msp"
    _score = staticmethod(msp)


class Energy(LinearProbe):
    """Energy of the logits of a linear head."""

    name = "energy"
    _score = staticmethod(energy)


class DICE(LinearProbe):
    """DICE with a linear head."""

    name = "dice"
    _score = staticmethod(dice)


class ASHS(LinearProbe):
    """ASH-S with a linear head."""

    name = "ash-s"
    _score = staticmethod(ash_s)


class TrainedMSP(TrainedClassifier):
    """Maximum softmax probability of a network trained for it."""

    name = "msp+trained"
    _score = staticmethod(msp)


class TrainedEnergy(TrainedClassifier):
    """Energy of the logits of a network trained for it."""

    name = "energy+trained"
    _score = staticmethod(energy)


class TrainedDICE(TrainedClassifier):
    """DICE with a network trained for it."""

    name = "dice+trained"
    _score = staticmethod(dice)


class TrainedASHS(TrainedClassifier):
    """ASH-S with a network trained for it."""

    name = "ash-s+trained"
    _score = staticmethod(ash_s)
