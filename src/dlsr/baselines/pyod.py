"""PyOD's detectors on the features of this project's encoders."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlsr.baselines.encoded import EncodedBaseline
from dlsr.errors import MissingExtraError
from dlsr.training.loop import Trainer

REFERENCES = 20_000
"""A detector is fitted to at most this many training samples."""


@dataclass(kw_only=True, repr=False, eq=False)
class PyODBaseline(EncodedBaseline):
    """Base: a detector of PyOD with its default settings.

    Included are detectors whose score of an image does not depend on the other images in the call (ECOD's and COPOD's
    do), and that allow a singular covariance, as that of `z0` is (PCA does not).
    PyOD saves with pickle. Here the features that it was fitted to are saved instead, and loading fits it again.
    """

    module: ClassVar[str]
    class_name: ClassVar[str]
    is_random: ClassVar[bool] = False

    def _build(self, classes: int) -> nn.Module:
        return nn.Module()

    def _learn(self, features: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        self._fit_to(self._random_subset(features, REFERENCES))
        self.log_ = []

    def _restore(self, tensors: dict[str, Tensor], classes: int) -> None:
        self.network_ = self._build(classes)
        self._fit_to(tensors["references"])

    def _fit_to(self, references: Tensor) -> None:
        self.network_.register_buffer("references", references)
        try:
            kind: Any = getattr(import_module(f"pyod.models.{self.module}"), self.class_name)
        except ImportError:
            raise MissingExtraError("pyod", "compare") from None
        self._model = kind(random_state=self.seed) if self.is_random else kind()
        self._model.fit(references.cpu().numpy())

    def _scores(self, features: Tensor) -> Tensor:
        return torch.from_numpy(self._model.decision_function(features.cpu().numpy()))


class PyODIForest(PyODBaseline):
    """Isolation forest (Liu et al. 2008)."""

    name = "pyod+iforest"
    module = "iforest"
    class_name = "IForest"
    is_random = True


class PyODLOF(PyODBaseline):
    """Local outlier factor (Breunig et al. 2000)."""

    name = "pyod+lof"
    module = "lof"
    class_name = "LOF"
