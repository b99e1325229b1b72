"""Base of the baselines that take an encoder's features, from the same feature store as `dlsr.Detector`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dlsr.baselines.base import Array, Baseline, Inputs, Labels
from dlsr.encoders import EncoderSpec, encoder_spec
from dlsr.encoders.encoder import Encoder
from dlsr.encoding.pipeline import encode_all, open_store
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform
from dlsr.method.noise import Digests
from dlsr.model import checked_features
from dlsr.training.loop import Trainer


@dataclass(kw_only=True, repr=False, eq=False)
class EncodedBaseline(Baseline):
    """A detector that takes features, shape `(N, c)`, from the feature store if it has them.

    Args:
        encoder: a preset of `dlsr.ENCODERS`, or a timm network.
        weights: the encoder's weights, as for `dlsr.Detector`.
        pooling: what is kept of each stage's map, as for `dlsr.Detector`.
        store: folder of the feature store; None keeps no features on disk.
    """

    output: ClassVar[Literal["stages", "penultimate"]] = "stages"
    """`stages`: `z0`. `penultimate`: the input of the network's own classifier."""
    scoring_batch = 1024

    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    pooling: str = "mean"
    store: str | None = None
    _columns: int | None = field(default=None, init=False)

    @property
    def encoder_spec_(self) -> EncoderSpec:
        """The encoder whose features this detector takes.

        Raises:
            SettingsError: for an unknown encoder or pooling.
        """
        spec = encoder_spec(self.encoder, weights=self.weights, pooling=self.pooling)
        return spec.model_copy(update={"output": self.output})

    def fit_features(
        self,
        features: ArrayLike,
        channels: Sequence[int] | None = None,
        *,
        digests: Digests | None = None,
        labels: Labels | None = None,
    ) -> Self:
        """Fit to features of `encoder_spec_` instead of images.

        Args:
            features: finite, shape `(N, c)`.
            channels: not used; for `Detector.fit_features`, which has the same arguments.
            digests: not used, for the same reason.
            labels: class of each image, from 0; only for detectors that need labels.

        Raises:
            FeatureError: for features of the wrong shape, or with NaN or infinity.
            InputError: if labels are needed and missing, or their number is not that of the features.
            TooFewImagesError: for fewer than 20 feature vectors.
        """
        z0 = checked_features(features)
        self._check_labels(labels, len(z0))
        self._columns = z0.shape[1]
        return self._fit_inputs(z0, labels, Trainer(self.seed))

    def score_features(self, features: ArrayLike, digests: Digests | None = None) -> Array:
        """Scores of features, shape `(N, c)` to `(N,)`, larger = more OOD; `digests` are not used.

        Raises:
            FeatureError: for features of the wrong shape, or with NaN or infinity.
            NotFittedError: before a fit.
        """
        self._check_fitted()
        return self._score_inputs(checked_features(features, self._c()))

    def _c(self) -> int:
        """Dimension of the features."""
        if self._columns is None:
            self._columns = self._loaded_encoder().c
        return self._columns

    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        encoder = self._loaded_encoder()
        self._columns = encoder.c
        store = open_store(Path(self.store) if self.store else None, encoder, transform)
        encoded = encode_all(encoder, images, store=store, transform=transform, workers=self.workers)
        return encoded.z0, encoded.errors

    def _loaded_encoder(self) -> Encoder:
        if not hasattr(self, "_encoder"):
            self._encoder = Encoder(self.encoder_spec_, str(self._device()))
        return self._encoder

    def _tensor(self, inputs: Inputs) -> Tensor:
        return torch.from_numpy(inputs).to(self._device())
