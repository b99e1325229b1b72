"""Base of the baselines that take an encoder's features, from the same feature store as `dlsr.Detector`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlsr.baselines.base import Baseline, Inputs
from dlsr.encoders import Encoder, encoder_spec
from dlsr.encoding.pipeline import encode_all, open_store
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform


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

    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        encoder = self._loaded_encoder()
        store = open_store(Path(self.store) if self.store else None, encoder, transform)
        encoded = encode_all(encoder, images, store=store, transform=transform, workers=self.workers)
        return encoded.z0, encoded.errors

    def _loaded_encoder(self) -> Encoder:
        if not hasattr(self, "_encoder"):
            spec = encoder_spec(self.encoder, weights=self.weights, pooling=self.pooling).model_copy(
                update={"output": self.output}
            )
            self._encoder = Encoder(spec, self._device())
        return self._encoder

    def _tensor(self, inputs: Inputs) -> Tensor:
        return torch.from_numpy(inputs).to(self._device())
