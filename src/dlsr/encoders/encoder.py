"""The frozen encoder: resized images in, `z0` out (paper, section 3.1)."""

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlsr.encoders.presets import EncoderSpec
from dlsr.errors import ArtifactError, ExportError, MissingExtraError, SettingsError, WeightsError, one_line
from dlsr.images.transforms import pixels_version
from dlsr.method.layers import DELTA
from dlsr.runtime.backends import (
    GRAPH_BACKENDS,
    Backend,
    as_onnx,
    choose_backend,
    graph_engine,
    is_own_conversion,
    make_engine,
)
from dlsr.runtime.base import Engine, Graph
from dlsr.runtime.quantisation import quantised

if TYPE_CHECKING:
    from dlsr.encoders.network import Network, PixelsToZ0

Z0_VERSION = 1
"""Raise it with every change to the code from pixels to `z0` that changes `z0`, in `network` or `dlsr.method.features`.

Cached features and converted engines of earlier versions are then no longer used.
"""


class Encoder:
    """A frozen pretrained network. The maps of its chosen stages are pooled and normalised to `z0`.

    Args:
        spec: network, stages, preprocessing and weights.
        device: where to run.
        backend: see `dlsr.runtime`. In float32 backends agree to 1e-4 in `z0`.
        weights_sha256: SHA-256 that the weights must have; known for a saved model.
        channels: dimensions of each chosen stage in `z0`; known for a saved model. If both are given and the engine is
            in the cache, neither timm nor the weights are loaded.
        onnx: the converted network of a saved model, which needs no PyTorch. In 8 bits it must be given: a fit makes
            it from its images, see `quantised`.
        timm: version of the package that the converted network is from.

    Attributes:
        spec: network, stages, preprocessing and weights.
        device: where the encoder runs.
        backend: the backend in use, `auto` resolved.
        channels: dimensions of each chosen stage in `z0`, M numbers that sum to `c`.
        weights_sha256: SHA-256 of the weights.
        timm: version of the package that the network is from.

    Raises:
        SettingsError: if a stage does not exist, or for a backend that does not run on the device or in the precision.
        WeightsError: if the weights are missing, do not fit the network or have another SHA-256.
        MissingExtraError: if the backend is not installed.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        device: str = "cpu",
        backend: Backend = "auto",
        *,
        weights_sha256: str | None = None,
        channels: tuple[int, ...] | None = None,
        onnx: bytes | None = None,
        timm: str | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.backend = choose_backend(backend, device, spec.precision)
        self._onnx = onnx if self.backend in GRAPH_BACKENDS else None
        if spec.precision == "int8" and onnx is None:
            raise SettingsError(
                "an encoder in 8 bits is made by a fit on this machine, from its images; use --precision float32"
            )
        self.timm = timm if timm is not None and self._onnx is not None else _version_of_timm()
        network = None
        if weights_sha256 is None or channels is None:
            network = self._network()
            weights_sha256, channels = network.weights_sha256, network.channels
        self.weights_sha256, self.channels = weights_sha256, channels
        self._engine: Engine
        if self._onnx is not None:
            with self._damage_told():
                self._engine = graph_engine(self._onnx, self.backend, spec.precision)
        else:
            try:
                self._engine = make_engine(self._graph(network), self.backend, device)
            except ExportError as error:
                raise SettingsError(f"the encoder '{spec.name}' needs --backend torch: {error}") from error

    @property
    def c(self) -> int:
        """Dimension of `z0`."""
        return sum(self.channels)

    @property
    def batch(self) -> int:
        """The number of images in a call of `encode` that gives the highest throughput."""
        return self._engine.batch

    @property
    def streams(self) -> int:
        """The number of concurrent calls of `encode` that gives the highest throughput."""
        return self._engine.streams

    @property
    def key(self) -> str:
        """Hex digest of everything besides the image that `z0` depends on: preprocessing, weights, versions of code.

        The versions of PyTorch and the backend are left out, since `z0` agrees to 1e-4 among them.
        """
        spec = self.spec
        parts = [spec.interpolation, spec.decoding, spec.resizer, pixels_version(spec.resizer)]
        return _digest(self._engine_key, *parts, *self._foreign)

    @cached_property
    def _foreign(self) -> list[str]:
        """Digest of a graph that this machine did not make: what a model says of it need not be true."""
        if self._onnx is None or is_own_conversion(self._onnx, ("pixels",), ("z0",), self._engine_key):
            return []
        return [hashlib.sha256(self._onnx).hexdigest()]

    @property
    def _engine_key(self) -> str:
        """Hex digest of everything that `z0` depends on besides the resized pixels."""
        spec = self.spec.model_dump_json(exclude={"name", "weights", "interpolation", "decoding", "resizer"})
        return _digest(spec, self.weights_sha256, repr(DELTA), str(Z0_VERSION), self.timm)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode resized images: uint8 of shape `(N, size, size, 3)` to `z0`, float32 of shape `(N, c)`.

        Raises:
            WeightsError: if the network gives other features than those of the saved model.
            ArtifactError: if the graph of a saved model cannot be run.
        """
        with self._damage_told():
            z0: NDArray[np.float32] = self._engine(pixels)[0]
        if z0.shape[1:] != (self.c,):
            given = math.prod(z0.shape[1:])
            raise WeightsError(
                f"the encoder gives {given} features, but the model was fitted to {self.c}; fit it again"
            )
        return z0

    def encode_with_maps(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Encode resized images, and return the stages' maps, too.

        Args:
            pixels: uint8, shape `(N, size, size, 3)`.

        Returns:
            `z0`, shape `(N, c)`, and M maps of shapes `(N, k_m, h_m, w_m)`.

        Raises:
            ArtifactError: if the graph of a saved model cannot be run, or does not tell its maps.
        """
        with self._damage_told():
            z0, *maps = self._with_maps(pixels)
        return z0, maps

    @cached_property
    def _with_maps(self) -> Engine:
        if self._onnx is not None:
            return graph_engine(self._onnx, self.backend, self.spec.precision, self.spec.map_names)
        return make_engine(self._graph(None), self.backend, self.device, inner=True)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """An error of the graph that came with a model is the model's."""
        try:
            yield
        except RuntimeError as error:
            if self._onnx is None:
                raise
            raise ArtifactError(f"the model's encoder cannot be run ({one_line(error)}); fit it again") from error

    def quantised(self, pixels: NDArray[np.uint8]) -> "Encoder":
        """This encoder in 8 bits.

        Args:
            pixels: resized ID images that the ranges of the integers are taken from, uint8 of shape
                `(N, size, size, 3)`.

        Raises:
            SettingsError: if OpenVINO cannot run it on this device.
            MissingExtraError: without OpenVINO or NNCF.
        """
        spec = self.spec.model_copy(update={"precision": "int8"})
        choose_backend("auto", self.device, spec.precision)
        return Encoder(
            spec,
            self.device,
            weights_sha256=self.weights_sha256,
            channels=self.channels,
            onnx=quantised(self.onnx(), [image[None] for image in pixels]),
            timm=self.timm,
        )

    def with_engine(self, engine: Engine) -> "Encoder":
        """A copy of this encoder that another engine runs."""
        other = copy.copy(self)
        other._engine = engine
        return other

    def module(self) -> "PixelsToZ0":
        """The encoder as a module, with newly loaded weights.

        Raises:
            WeightsError: if the weights are missing, do not fit the network or are not those of this encoder.
        """
        return self._network(self.weights_sha256).module

    def graph(self) -> Graph:
        """The graph that an engine runs: `pixels` to `z0`."""
        return self._graph(None)

    def onnx(self) -> bytes:
        """The graph in ONNX. Raises MissingExtraError if it is not known, and what converts it is not installed."""
        return as_onnx(self.graph()) if self._onnx is None else self._onnx

    def _graph(self, network: "Network | None") -> Graph:
        from dlsr.encoders.network import pixels_to_z0  # noqa: PLC0415 - as below

        return pixels_to_z0(self.spec, self.weights_sha256, self._engine_key, network)

    def _network(self, weights_sha256: str | None = None) -> "Network":
        from dlsr.encoders.network import Network  # noqa: PLC0415 - PyTorch and timm take seconds to import

        return Network(self.spec, weights_sha256)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _version_of_timm() -> str:
    try:
        return metadata.version("timm")
    except metadata.PackageNotFoundError:
        raise MissingExtraError("timm", "fit") from None
