"""The frozen encoder: resized images in, `z0` out (paper, section 3.1)."""

import copy
import hashlib
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.encoders.presets import EncoderSpec
from dlsr.encoders.weights import fingerprint, load_classifier, load_exactly
from dlsr.errors import SettingsError, WeightsError, one_line
from dlsr.images.transforms import pixels_version
from dlsr.method.features import DELTA, to_z0
from dlsr.method.layers import Pooling, layer_dimensions
from dlsr.runtime.backends import Backend, choose_backend, make_engine
from dlsr.runtime.base import Engine, Graph

Z0_VERSION = 1
"""Raise it with every change to the code from pixels to `z0` that changes `z0`, here or in `dlsr.method.features`.

Cached features and converted engines of earlier versions are then no longer used.
"""


class PixelsToZ0(nn.Module):
    """Pixel normalisation, the feature network, pooling and z-score as one module.

    Maps resized images, uint8 of shape `(N, size, size, 3)`, to `z0`, shape `(N, c)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        self.network = network
        self.pooling: Pooling = pooling
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return to_z0(self.network(self.normalised(pixels)), self.pooling)

    def normalised(self, pixels: Tensor) -> Tensor:
        """The network's input, shape `(N, 3, size, size)`."""
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)


class PixelsToPenultimate(PixelsToZ0):
    """The input of the last layer of a timm classifier, shape `(N, c)`, without pooling of stages or z-score."""

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        classifier: Any = self.network
        maps = classifier.forward_features(self.normalised(pixels))
        features: Tensor = classifier.forward_head(maps, pre_logits=True)
        return features


class Encoder:
    """A frozen pretrained network. The maps of its chosen stages are pooled and normalised to `z0`.

    Args:
        spec: network, stages, preprocessing and weights.
        device: where to run.
        backend: see `dlsr.runtime`. In float32 backends agree to 1e-4 in `z0`.
        weights_sha256: SHA-256 that the weights must have; known for a saved model.
        channels: dimensions of each chosen stage in `z0`; known for a saved model. If both are given and the engine is
            in the cache, neither timm nor the weights are loaded.

    Attributes:
        spec: network, stages, preprocessing and weights.
        device: where the encoder runs.
        backend: the backend in use, `auto` resolved.
        channels: dimensions of each chosen stage in `z0`, M numbers that sum to `c`.
        weights_sha256: SHA-256 of the weights.

    Raises:
        SettingsError: if a stage does not exist, or for a backend that does not run on the device or in the precision.
        WeightsError: if the weights are missing, do not fit the network or have another SHA-256.
        MissingExtraError: if the backend is not installed.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
        *,
        weights_sha256: str | None = None,
        channels: tuple[int, ...] | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.backend = choose_backend(backend, self.device, spec.precision)
        network: Any = None
        if weights_sha256 is None or channels is None:
            network = _network(spec)
            self.weights_sha256 = fingerprint(network)
            self.channels: tuple[int, ...] = _channels(spec, network)
        else:
            self.weights_sha256, self.channels = weights_sha256, channels
        self._engine: Engine = make_engine(self._graph(network), self.backend, self.device)

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
        return _digest(self._engine_key, spec.interpolation, spec.decoding, spec.resizer, pixels_version(spec.resizer))

    @property
    def _engine_key(self) -> str:
        """Hex digest of everything that `z0` depends on besides the resized pixels."""
        spec = self.spec.model_dump_json(exclude={"name", "weights", "interpolation", "decoding", "resizer"})
        return _digest(spec, self.weights_sha256, repr(DELTA), str(Z0_VERSION), metadata.version("timm"))

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode resized images: uint8 of shape `(N, size, size, 3)` to `z0`, float32 of shape `(N, c)`.

        Raises:
            WeightsError: if the network gives other features than those of the saved model.
        """
        z0: NDArray[np.float32] = self._engine(pixels)[0]
        if z0.shape[1] != self.c:
            raise WeightsError(
                f"the encoder gives {z0.shape[1]} features, but the model was fitted to {self.c}; fit it again"
            )
        return z0

    def with_engine(self, engine: Engine) -> "Encoder":
        """A copy of this encoder that another engine runs."""
        other = copy.copy(self)
        other._engine = engine
        return other

    def module(self) -> PixelsToZ0:
        """The encoder as a module, with newly loaded weights.

        Raises:
            WeightsError: if the weights are missing, do not fit the network or are not those of this encoder.
        """
        network = _network(self.spec)
        if fingerprint(network) != self.weights_sha256:
            raise WeightsError(
                "the encoder's weights are not those that the model was fitted with; give the same with --weights"
            )
        return self._module(network)

    def example(self, count: int = 2) -> Tensor:
        """Random pixels, uint8 of shape `(count, size, size, 3)`."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, self.spec.size, self.spec.size, 3)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def graph(self) -> Graph:
        """The graph that an engine runs: `pixels` to `z0`."""
        return self._graph(None)

    def _graph(self, network: Any) -> Graph:
        def build() -> PixelsToZ0:
            return self._module(network) if network is not None else self.module()

        return Graph(build, {"pixels": self.example()}, ("z0",), self._engine_key, self.spec.precision)

    def _module(self, network: nn.Module) -> PixelsToZ0:
        kind = PixelsToPenultimate if self.spec.output == "penultimate" else PixelsToZ0
        return kind(network, self.spec.mean, self.spec.std, self.spec.pooling)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _network(spec: EncoderSpec) -> Any:
    return feature_network(spec) if spec.output == "stages" else load_classifier(spec).requires_grad_(False)


def _channels(spec: EncoderSpec, network: Any) -> tuple[int, ...]:
    if spec.output == "penultimate":
        return (int(network.head_hidden_size),)
    return layer_dimensions(network.feature_info.channels(), spec.pooling)


def _stage_count(spec: EncoderSpec) -> int:
    """The number of stages of the encoder's network. Raises SettingsError if it has no feature maps."""
    import timm  # noqa: PLC0415 - as above

    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise SettingsError(
            f"timm's '{spec.network}' has no feature maps ({one_line(error)}); choose another"
        ) from error
    return len(network.feature_info.channels())


def feature_network(spec: EncoderSpec) -> Any:
    """The chosen stages of the encoder's network, with its weights.

    Raises:
        SettingsError: if timm does not know the network, or a stage does not exist.
        WeightsError: if the weights are missing, damaged or do not fit the network.
    """
    import timm  # noqa: PLC0415 - takes seconds to import, and is not needed if the engine is in the cache

    whole = load_classifier(spec).state_dict()
    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True, out_indices=spec.stages)
    except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        count = _stage_count(spec)
        raise SettingsError(
            f"'{spec.name}' has stages 0..{count - 1}, got {list(spec.stages)}; choose among these"
        ) from error
    wanted = {name: name.removeprefix("model.") for name in network.state_dict()}
    if not set(wanted.values()) <= whole.keys():
        raise WeightsError(
            f"timm's features of '{spec.network}' have other weights than its classifier; choose another encoder"
        )
    load_exactly(network, {name: whole[theirs] for name, theirs in wanted.items()}, spec.network)
    return network.eval().requires_grad_(False)
