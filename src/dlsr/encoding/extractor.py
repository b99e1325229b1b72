"""The feature extractor: an encoder, the feature store and the workers that read images. Images in, features out."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlsr.encoders import EncoderSpec
from dlsr.encoders.encoder import Encoder
from dlsr.encoding.pipeline import Encoded, Progress, Saver, encode_all, encode_chunks, open_store, readable_pixels
from dlsr.encoding.store import FeatureStore
from dlsr.errors import OutputError, SettingsError
from dlsr.images.sources import ImagesLike, open_images, warn_caller
from dlsr.images.transforms import Transform
from dlsr.runtime.backends import Backend, choose_backend

if TYPE_CHECKING:
    from dlsr.training.distributed import Ranks

RANGE_IMAGES = 300
"""This many images give the ranges of 8-bit integers, as NNCF advises."""


class FeatureStoreWarning(UserWarning):
    """The feature store cannot be written. Results are complete, but the same images will be encoded again."""


@dataclass
class FeatureExtractor:
    """Turns images into features, from the feature store where they are known.

    The encoder is loaded at its first use.
    """

    spec: EncoderSpec
    device: str
    backend: Backend = "auto"
    store: Path | None = None
    """Folder of the feature store; None keeps no features on disk."""
    workers: int = 2
    """Threads that read and decode images."""
    weights_sha256: str | None = None
    """Of the weights that the encoder must have, if known."""
    channels: tuple[int, ...] | None = None
    """Channels of each stage, if known."""
    onnx: bytes | None = None
    """The encoder as a graph, if known."""
    timm: str | None = None
    """Version of the package that the graph is from."""
    _encoder: Encoder | None = field(default=None, init=False, repr=False)

    @property
    def encoder(self) -> Encoder:
        """The encoder.

        Raises:
            SettingsError: if a stage does not exist.
            WeightsError: if the weights cannot be had, do not fit or are not those asked for.
        """
        if self._encoder is None:
            self._encoder = Encoder(
                self.spec,
                self.device,
                self.backend,
                weights_sha256=self.weights_sha256,
                channels=self.channels,
                onnx=self.onnx,
                timm=self.timm,
            )
        return self._encoder

    def with_ranges(self, images: ImagesLike, seed: int) -> "FeatureExtractor":
        """For an encoder in 8 bits, with one whose ranges are taken from some of these images. Others stay as they are.

        Raises:
            NoImagesError: if none can be read.
            SettingsError, MissingExtraError: as `Encoder.quantised`.
        """
        if self.spec.precision != "int8":
            return self
        # Without the graph that it may have from an earlier fit or a model, which is in 8 bits already.
        spec = self.spec.model_copy(update={"precision": "float32"})
        exact = FeatureExtractor(spec, self.device, self.backend, workers=self.workers)
        encoder = exact.encoder.quantised(exact.pixels(images, RANGE_IMAGES, seed))
        other = replace(
            self,
            weights_sha256=encoder.weights_sha256,
            channels=encoder.channels,
            onnx=encoder.onnx(),
            timm=encoder.timm,
        )
        other._encoder = encoder
        return other

    def is_for(self, spec: EncoderSpec, device: str, backend: Backend) -> bool:
        """Whether this extractor's encoder is the one described, and not a graph from elsewhere."""
        own = choose_backend(self.backend, self.device, self.spec.precision)
        return self.onnx is None and (self.spec, self.device, own) == (
            spec,
            device,
            choose_backend(backend, device, spec.precision),
        )

    def encode(
        self, images: ImagesLike, *, transform: Transform | None = None, progress: Progress | None = None
    ) -> Encoded:
        """Features of all images, see `dlsr.encoding.pipeline.encode_all`."""
        return encode_all(
            self.encoder,
            open_images(images),
            store=open_store(self.store, self.encoder, transform),
            transform=transform,
            workers=self.workers,
            progress=progress,
        )

    def encode_shared(
        self,
        images: ImagesLike,
        ranks: "Ranks",
        *,
        transform: Transform | None = None,
        progress: Progress | None = None,
    ) -> Encoded:
        """As `encode`, by several processes, all of which get all features.

        With a feature store, each first encodes its share into it, where all of them then find everything.
        """
        found = open_images(images)
        if ranks.size > 1 and self.store is not None:
            share = found.subset(range(ranks.rank, len(found), ranks.size))
            advance = progress or (lambda n: None)
            self.encode(share, transform=transform, progress=lambda n: advance(n * ranks.size))
            ranks.wait()
            progress = None
        return self.encode(found, transform=transform, progress=progress)

    def encode_chunks(
        self,
        images: ImagesLike,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Encoded]:
        """Features a chunk at a time, see `dlsr.encoding.pipeline.encode_chunks`.

        If the store cannot be written, a warning says so, and the rest is not kept.
        """
        return encode_chunks(
            self.encoder,
            open_images(images).items,
            store=open_store(self.store, self.encoder, transform),
            transform=transform,
            batch_size=batch_size,
            workers=self.workers,
            progress=progress,
            on_store_error=_warn_of_store,
        )

    def saver(self) -> Saver:
        """Keeps features in the store, if there is one. If it cannot be written, a warning says so."""
        return Saver(open_store(self.store, self.encoder), _warn_of_store)

    def pixels(self, images: ImagesLike, limit: int, seed: int | None = None) -> NDArray[np.uint8]:
        """At most `limit` readable images, resized for the encoder: uint8, shape `(n, size, size, 3)`.

        Args:
            images: see `dlsr.open_images`.
            limit: how many at most.
            seed: take them in random order; None for the first ones.

        Raises:
            NoImagesError: if none can be read.
        """
        found = open_images(images)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(found))
            order[:limit].sort()  # frames of a clip are read fastest in their order
            found = found.subset(int(i) for i in order)
        return readable_pixels(self.encoder, found, limit, self.workers)

    def feature_store(self) -> FeatureStore:
        """The store of this encoder's features.

        Raises:
            SettingsError: if there is none.
            ArtifactError: if it is damaged.
        """
        store = open_store(self.store, self.encoder)
        if store is None:
            raise SettingsError("this detector keeps no features; give it a store")
        return store


def _warn_of_store(error: OutputError) -> None:
    warn_caller(f"features are not kept: {error}", FeatureStoreWarning)
