"""Base of the baselines that work on an encoder's features, which all of them and `dlsr.Detector` share."""

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
    """A detector whose rows are features, shape `(N, c)`, from the feature store where they are known.

    Args:
        encoder: a preset of `dlsr.ENCODERS`, or a network of timm.
        weights: as for `dlsr.Detector`.
        store: folder of the feature store; None keeps no features on disk.
    """

    output: ClassVar[Literal["stages", "penultimate"]] = "stages"
    """`z0`, or what the network's own classifier sees."""
    rows_at_once = 1024

    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    store: str | None = None

    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        encoder = self._loaded_encoder()
        store = open_store(Path(self.store) if self.store else None, encoder, transform)
        encoded = encode_all(encoder, images, store=store, transform=transform, workers=self.workers)
        return encoded.z0, encoded.errors

    def _loaded_encoder(self) -> Encoder:
        if not hasattr(self, "_encoder"):
            spec = encoder_spec(self.encoder, weights=self.weights).model_copy(update={"output": self.output})
            self._encoder = Encoder(spec, self._device())
        return self._encoder

    def _tensor(self, rows: Inputs) -> Tensor:
        return torch.from_numpy(rows).to(self._device())
