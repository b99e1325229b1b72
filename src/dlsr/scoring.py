"""Scores of features by a fitted score, whatever runs it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import ArtifactError, SettingsError, one_line
from dlsr.method.noise import Digests, batches_with_noise
from dlsr.runtime.backends import choose_backend
from dlsr.runtime.base import Engine
from dlsr.runtime.onnx_engine import load_onnx

Array = NDArray[np.float64]

NO_MAPS = "this model makes no maps; fit it again with --maps"


class FittedScorer(Protocol):
    """A score that was fitted."""

    @property
    def learned(self) -> Mapping[str, NDArray[Any]]:
        """What it learned, by name: the tensors of its state dict."""

    def score(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> tuple[Array, Array]:
        """Scores of features; larger = more OOD.

        Args:
            z0: shape `(N, c)`.
            digests: content digests, from which noise is derived, shape `(N, 16)`.
            seed: of the noise.

        Returns:
            Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`.
        """

    def gradient(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> NDArray[np.float32]:
        """How much the score of each image would rise with each of its features.

        Args:
            z0: shape `(N, c)`.
            digests: as for `score`.
            seed: of the noise.

        Returns:
            Shape `(N, c)`.

        Raises:
            SettingsError: if the model does not hold what this needs.
        """


def as_input(name: str) -> str:
    """The graph's name of what was learned."""
    return f"learned.{name}"


@dataclass(frozen=True)
class ScorerGraph:
    """A score as a graph in ONNX, which serves all fits with the same settings and layers."""

    onnx: bytes
    """Takes `z0`, `noise` if there is any, and what a fit learned; returns `score` and `layers`."""
    noise_vectors: int
    """Vectors of noise for each image."""
    batch: int
    """At most this many samples are scored at once."""
    gradient: bytes | None = None
    """Takes the same, and returns the gradient of the scores with respect to `z0`; None if no maps were asked for."""


@dataclass(frozen=True)
class GraphScorer:
    """A score run as a graph by ONNX Runtime, without PyTorch: for so small a graph it is faster than OpenVINO."""

    learned: Mapping[str, NDArray[Any]]
    layers: int
    """M."""
    graph: ScorerGraph
    engine: Engine

    @classmethod
    def of(cls, graph: ScorerGraph, learned: Mapping[str, NDArray[Any]], layers: int) -> Self:
        """A graph and what a fit learned. Raises MissingExtraError without ONNX Runtime."""
        choose_backend("onnxruntime", "cpu")
        return cls(learned, layers, graph, _engine(graph.onnx, learned))

    def score(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> tuple[Array, Array]:
        """See `FittedScorer`."""
        scores, layers = np.empty(len(z0)), np.empty((len(z0), self.layers))
        for batch, (of_images, of_layers) in self._run(self.engine, z0, digests, seed):
            scores[batch], layers[batch] = of_images, of_layers
        return scores, layers

    def gradient(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> NDArray[np.float32]:
        """See `FittedScorer`."""
        gradient = np.empty_like(z0)
        for batch, (of_images,) in self._run(self._gradient, z0, digests, seed):
            gradient[batch] = of_images
        return gradient

    @cached_property
    def _gradient(self) -> Engine:
        if self.graph.gradient is None:
            raise SettingsError(NO_MAPS)
        return _engine(self.graph.gradient, self.learned)

    def _run(
        self, engine: Engine, z0: NDArray[np.float32], digests: Digests, seed: int
    ) -> Iterator[tuple[slice, tuple[NDArray[Any], ...]]]:
        """What an engine returns for some samples at a time. Raises ArtifactError if it cannot be run."""
        vectors = self.graph.noise_vectors
        for batch, noise in batches_with_noise(digests, seed, vectors, z0.shape[1], self.graph.batch):
            try:
                yield batch, engine(z0[batch], noise) if vectors else engine(z0[batch])
            except (RuntimeError, ValueError) as error:
                raise ArtifactError(f"the model's score cannot be run ({one_line(error)}); fit it again") from error


def _engine(onnx: bytes, learned: Mapping[str, NDArray[Any]]) -> Engine:
    inputs = {as_input(name): values for name, values in learned.items()}
    return load_onnx(onnx, inputs, threads=1)
