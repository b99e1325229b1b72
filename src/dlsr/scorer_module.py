"""A fitted score as a PyTorch module: scores, and its conversion to a graph."""

import hashlib
import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

import dlsr.method
import dlsr.scorers
from dlsr.errors import ExportError, one_line
from dlsr.method.noise import Digests, batches_with_noise, row_digests
from dlsr.runtime.backends import as_onnx
from dlsr.runtime.base import Graph
from dlsr.scorers.base import LayerScores, Scorer, score_features
from dlsr.scoring import Array, GraphScorer, ScorerGraph, as_input

TOLERANCE = 1e-3
"""Scores of random features by graph and by PyTorch differ by at most this, absolute or relative."""
UNLIKELY = 211
"""No size that a score computes with is likely to be this, or a little more."""


class ModuleScorer:
    """A score run by PyTorch.

    Args:
        module: the fitted score.
    """

    def __init__(self, module: Scorer) -> None:
        self.module = module

    @property
    def learned(self) -> Mapping[str, NDArray[Any]]:
        """See `dlsr.scoring.FittedScorer`."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.module.state_dict().items()}

    @property
    def device(self) -> torch.device:
        """Where it is; the CPU for a score that learned nothing, which is anywhere."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def score(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> tuple[Array, Array]:
        """See `dlsr.scoring.FittedScorer`."""
        if not len(z0):
            return np.empty(0), np.empty((0, len(self.module.channels)))
        return as_numbers(score_features(self.module, torch.from_numpy(z0).to(self.device), digests, seed))

    def gradient(self, z0: NDArray[np.float32], digests: Digests, seed: int) -> NDArray[np.float32]:
        """See `dlsr.scoring.FittedScorer`."""
        gradient, scorer = np.empty_like(z0), self.module
        for batch, noise in batches_with_noise(digests, seed, scorer.noise_vectors, z0.shape[1], scorer.batch):
            samples = torch.from_numpy(z0[batch]).to(self.device)
            gradient[batch] = _gradient(scorer, samples, torch.from_numpy(noise).to(self.device)).cpu().numpy()
        return gradient


def as_numbers(scores: LayerScores) -> tuple[Array, Array]:
    """Scores as NumPy arrays."""
    of_images, of_layers = (values.cpu().double().numpy() for values in scores)
    return of_images, of_layers


def _gradient(score: Callable[..., LayerScores], z0: Tensor, *others: Tensor) -> Tensor:
    """Gradient of the sum of all scores with respect to `z0`, of its shape: no score depends on another image."""
    gradient: Tensor = grad(lambda samples: score(samples, *others)[0].sum())(z0)
    return gradient.detach()


class _WithLearned(nn.Module):
    """A score that takes what it learned as inputs: `z0`, noise if it needs any, and the tensors of its state dict."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        # Not the fitted one: its tensors would be those of the inputs, which the tracing does not allow.
        with torch.random.fork_rng(devices=[]):
            self.scorer = type(scorer)(scorer.settings, scorer.channels)
        self.names = tuple(scorer.state_dict())

    def forward(self, z0: Tensor, *others: Tensor) -> LayerScores:
        noise, learned = (others[0], others[1:]) if self.scorer.noise_vectors else (z0.unsqueeze(1)[:, :0], others)
        named = dict(zip(self.names, learned, strict=True))
        found: LayerScores = functional_call(self.scorer, named, (z0, noise), tie_weights=False)
        return found


def scorer_graph(scorer: Scorer, *, gradient: bool = False) -> ScorerGraph:
    """A score as a graph, from the cache if one with the same settings, layers and code is there.

    Args:
        scorer: the fitted score.
        gradient: also make the graph of its gradient, which takes longer.

    Raises:
        OutputError: if it cannot be written to the cache.
        MissingExtraError: if what converts graphs is not installed.
    """
    learned = {name: tensor.detach().cpu() for name, tensor in scorer.state_dict().items()}
    rows = _free_rows(scorer, learned)
    c = sum(scorer.channels)
    inputs = {"z0": torch.zeros(2, c)}
    if scorer.noise_vectors:
        inputs["noise"] = torch.zeros(2, scorer.noise_vectors, c)
    shapes = {name: tuple(tensor.shape)[int(name in rows) :] for name, tensor in learned.items()}
    about = (scorer.name, scorer.settings.model_dump_json(), scorer.channels, shapes, sorted(rows), _code(scorer))
    graph = Graph(
        lambda: _WithLearned(scorer),
        inputs,
        ("score", "layers"),
        hashlib.sha256(repr(about).encode()).hexdigest(),
        learned={as_input(name): tensor for name, tensor in learned.items()},
        rows=frozenset(map(as_input, rows)),
        fewest_rows=scorer.fewest_rows or 1,
    )
    by_onnx = None
    if gradient:
        key = f"{graph.key} gradient"
        by_onnx = as_onnx(replace(graph, build=lambda: _traced(scorer, graph), outputs=("gradient",), key=key))
    found = ScorerGraph(as_onnx(graph), scorer.noise_vectors, scorer.batch, by_onnx)
    _check_agreement(scorer, found)
    return found


def _traced(scorer: Scorer, graph: Graph) -> nn.Module:
    """The gradient of a score as a module without derivatives, which `torch.export` cannot trace."""
    score = _WithLearned(scorer)
    used = {size for tensor in graph.learned.values() for size in tensor.shape}
    # Sizes that are equal by chance would be taken for the same.
    free = (size for size in count(max(graph.fewest_rows, UNLIKELY)) if size not in used)
    images, rows = next(free), next(free)
    random = torch.Generator().manual_seed(0)
    examples = [torch.randn(images, *example.shape[1:], generator=random) for example in graph.inputs.values()]
    for name, tensor in graph.learned.items():
        examples.append(torch.randn(rows, *tensor.shape[1:], generator=random) if name in graph.rows else tensor)
    trace = make_fx(lambda *arrays: _gradient(score, *arrays), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    try:
        module: nn.Module = trace(*examples)
    except Exception as error:  # of any kind, depending on what the score does
        raise ExportError(f"its gradient cannot be traced ({one_line(error)})") from error
    return module


def _check_agreement(scorer: Scorer, graph: ScorerGraph) -> None:
    """Raise ExportError if a graph differs from PyTorch, which may be due to code that the cache misses."""
    module = ModuleScorer(scorer)
    by_graph = GraphScorer.of(graph, module.learned, len(scorer.channels))
    z0 = np.random.default_rng(0).standard_normal((8, sum(scorer.channels)), np.float32)
    digests = row_digests(z0)
    _check_equal(by_graph.score(z0, digests, 0)[0], module.score(z0, digests, 0)[0])
    if graph.gradient is not None:
        exact = module.gradient(z0, digests, 0)
        _check_equal(by_graph.gradient(z0, digests, 0), exact, np.abs(exact).max())


def _check_equal(found: NDArray[Any], exact: NDArray[Any], unit: float = 1.0) -> None:
    if not np.allclose(found, exact, rtol=TOLERANCE, atol=TOLERANCE * unit, equal_nan=True):
        raise ExportError(f"its graph disagrees with PyTorch by up to {np.abs(found - exact).max():.1e}")


def _free_rows(scorer: Scorer, learned: Mapping[str, Tensor]) -> frozenset[str]:
    """The tensors whose number of rows the graph leaves open."""
    with torch.device("meta"):
        empty = type(scorer)(scorer.settings, scorer.channels).state_dict()
    found = frozenset(name for name, tensor in empty.items() if tensor.ndim and not len(tensor))
    enough = scorer.fewest_rows is not None and all(len(learned[name]) >= scorer.fewest_rows for name in found)
    return found if enough else frozenset()


def _code(scorer: Scorer) -> str:
    """Digest of the code of all scores and of the maths below them: in a checkout it changes, its version does not.

    Of a score that was typed into an interpreter nothing is known, so its graph is never taken from the cache.
    """
    try:
        files = {Path(inspect.getfile(kind)) for kind in type(scorer).__mro__ if issubclass(kind, nn.Module)}
    except (OSError, TypeError):
        return secrets.token_hex()
    files.add(Path(__file__))
    for package in (dlsr.method, dlsr.scorers):
        files |= set(Path(package.__path__[0]).glob("*.py"))
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
