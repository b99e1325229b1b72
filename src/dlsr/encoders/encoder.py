"""The frozen encoder: resized images in, `z0` out (paper, section 3.1)."""

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.encoders.presets import EncoderSpec
from dlsr.encoders.weights import fingerprint, load_classifier, load_exactly
from dlsr.errors import SettingsError, WeightsError
from dlsr.method.features import DELTA, to_z0
from dlsr.runtime.backends import Backend, choose_backend, make_engine
from dlsr.runtime.base import Engine, Graph


class PixelsToZ0(nn.Module):
    """Pixel normalisation, the feature network, pooling and z-score as one module.

    Takes resized images, uint8 of shape `(N, size, size, 3)`, gives `z0`, shape `(N, c)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return to_z0(self.network(self.normalised(pixels)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the network takes, shape `(N, 3, size, size)`."""
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)


class PixelsToPenultimate(PixelsToZ0):
    """As `PixelsToZ0` for a whole classifier of timm: what its last layer takes, shape `(N, c)`, as it is."""

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        classifier: Any = self.network
        maps = classifier.forward_features(self.normalised(pixels))
        features: Tensor = classifier.forward_head(maps, pre_logits=True)
        return features


class Encoder:
    """A frozen network whose chosen stages make up `z0`.

    Args:
        spec: network, stages, preprocessing and weights.
        device: where to run.
        backend: what runs it, see `dlsr.runtime`. Backends agree to 1e-4 in `z0`.
        weights_sha256: of the weights that it must have, if that is known, as it is of a saved model's.
        channels: of each chosen stage, if known; with it nothing is loaded where the engine is in the cache.

    Attributes:
        backend: the one that runs.
        channels: channels of each chosen stage, M numbers that sum to `c`.
        weights_sha256: of the weights.

    Raises:
        SettingsError: if a stage does not exist.
        WeightsError: if the weights cannot be had, do not fit or are not those asked for.
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
        self.backend = choose_backend(backend, self.device)
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
        """How many images a call of `encode` are quickest."""
        return self._engine.batch

    @property
    def streams(self) -> int:
        """How many calls of `encode` at once are quickest."""
        return self._engine.streams

    @property
    def key(self) -> str:
        """What `z0` depends on besides the image: weights, stages and preprocessing, as one hex digest."""
        parts = self.spec.model_dump_json(exclude={"name", "weights"}), self.weights_sha256, repr(DELTA)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode resized images: uint8 of shape `(N, size, size, 3)` to `z0`, float32 of shape `(N, c)`."""
        z0: NDArray[np.float32] = self._engine(pixels)[0]
        return z0

    def with_engine(self, engine: Engine) -> "Encoder":
        """The same encoder run by another engine."""
        other = copy.copy(self)
        other._engine = engine
        return other

    def module(self) -> PixelsToZ0:
        """The encoder as a module, newly loaded. Raises as the class does."""
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
        """What an engine runs: `pixels` to `z0`."""
        return self._graph(None)

    def _graph(self, network: Any) -> Graph:
        def build() -> PixelsToZ0:
            return self._module(network) if network is not None else self.module()

        return Graph(build, {"pixels": self.example()}, ("z0",), self.key)

    def _module(self, network: nn.Module) -> PixelsToZ0:
        kind = PixelsToPenultimate if self.spec.output == "penultimate" else PixelsToZ0
        return kind(network, self.spec.mean, self.spec.std)


def _network(spec: EncoderSpec) -> Any:
    return feature_network(spec) if spec.output == "stages" else load_classifier(spec).requires_grad_(False)


def _channels(spec: EncoderSpec, network: Any) -> tuple[int, ...]:
    return tuple(network.feature_info.channels()) if spec.output == "stages" else (int(network.head_hidden_size),)


def feature_network(spec: EncoderSpec) -> Any:
    """The chosen stages of the encoder's network, with its weights. Raises as `Encoder` does."""
    import timm  # noqa: PLC0415 - takes seconds, and is not needed where the engine is in the cache

    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True, out_indices=spec.stages)
    except (AssertionError, IndexError, ValueError) as error:
        whole_network: Any = timm.create_model(spec.network, pretrained=False, features_only=True)
        count = len(whole_network.feature_info.channels())
        raise SettingsError(
            f"'{spec.name}' has stages 0..{count - 1}, asked for {list(spec.stages)}; choose among these"
        ) from error
    whole = load_classifier(spec).state_dict()
    wanted = {name: name.removeprefix("model.") for name in network.state_dict()}
    if not set(wanted.values()) <= whole.keys():
        raise WeightsError(f"timm names the features of '{spec.network}' in another way; choose another encoder")
    load_exactly(network, {name: whole[theirs] for name, theirs in wanted.items()}, spec.network)
    return network.eval().requires_grad_(False)
