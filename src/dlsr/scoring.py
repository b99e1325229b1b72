"""Scores of features by a fitted score, whatever runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import ArtifactError, one_line
from dlsr.method.noise import Digests, batches_with_noise
from dlsr.runtime.backends import choose_backend
from dlsr.runtime.base import Engine
from dlsr.runtime.onnx_engine import load_onnx

Array = NDArray[np.float64]


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
        inputs = {as_input(name): values for name, values in learned.items()}
        return cls(learned, layers, graph, load_onnx(graph.onnx, inputs, threads=1))

    def score(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> tuple[Array, Array]:
        """See `FittedScorer`."""
        vectors = self.graph.noise_vectors
        scores, layers = np.empty(len(z0)), np.empty((len(z0), self.layers))
        for batch, noise in batches_with_noise(digests, seed, vectors, z0.shape[1], self.graph.batch):
            try:
                scores[batch], layers[batch] = self.engine(z0[batch], noise) if vectors else self.engine(z0[batch])
            except (RuntimeError, ValueError) as error:
                raise ArtifactError(f"the model's score cannot be run ({one_line(error)}); fit it again") from error
        return scores, layers
