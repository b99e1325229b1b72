"""PyOD's detectors on the same features: what users would reach for today."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlsr.baselines.base import Watch
from dlsr.baselines.encoded import EncodedBaseline
from dlsr.errors import MissingExtraError

REFERENCES = 20_000


@dataclass(kw_only=True, repr=False, eq=False)
class PyODBaseline(EncodedBaseline):
    """Base: a detector of PyOD with its default settings, fitted to at most 20,000 training images.

    Of PyOD's many, those whose score of an image does not depend on the images around it (ECOD's and COPOD's do), and
    which stand features of a singular covariance, as `z0` has (PCA's does not).
    PyOD saves by pickle; what is saved here are the features that it was fitted to, and loading fits it again.

    """

    module: ClassVar[str]
    class_name: ClassVar[str]
    is_random: ClassVar[bool] = False

    def _build(self, classes: int) -> nn.Module:
        return nn.Module()

    def _learn(self, features: Tensor, labels: Tensor | None, watch: Watch) -> None:
        self._fit_to(features[torch.randperm(len(features))[:REFERENCES].to(features.device)])
        self.log_ = []

    def _restore(self, tensors: dict[str, Tensor], classes: int) -> None:
        self.network_ = self._build(classes)
        self._fit_to(tensors["references"])

    def _fit_to(self, references: Tensor) -> None:
        self.network_.register_buffer("references", references)
        try:
            kind: Any = getattr(import_module(f"pyod.models.{self.module}"), self.class_name)
        except ImportError:
            raise MissingExtraError("pyod", "rivals") from None
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
