"""The parameters of a detector as one validated config, and the feature extractor that they describe."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlsr.config import DetectorConfig, validated
from dlsr.encoders import encoder_spec
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.errors import NotFittedError, SettingsError
from dlsr.estimator import Estimator
from dlsr.model import Learned
from dlsr.runtime.backends import Backend
from dlsr.runtime.devices import torch_device
from dlsr.scorers import Settings, resolve
from dlsr.scorers.base import settings_by_score

_CONFIG = tuple(name for name in DetectorConfig.model_fields if name != "settings")


class Configured(Learned, Estimator):
    """Base of `Detector`: from parameters to settings in force and to a feature extractor."""

    encoder: str
    stages: Sequence[int] | None
    weights: str | os.PathLike[str] | None
    device: str
    backend: Backend
    store: str | os.PathLike[str] | None
    workers: int

    _extractor: FeatureExtractor | None = None
    """Kept, since loading an encoder takes seconds."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        named = {name: default for name, default in super()._defaults().items() if name != "settings"}
        return named | dict.fromkeys(settings_by_score())

    def _set_score_settings(self, settings: Mapping[str, Any]) -> None:
        """Every setting of every score is a parameter, None unless given."""
        known = settings_by_score()
        for name in (*known, *settings):
            if name not in known:
                raise SettingsError(f"no score has a setting '{name}'; choose among {', '.join(known)}")
            setattr(self, name, settings.get(name))

    def _config(self) -> DetectorConfig:
        given = {name: getattr(self, name) for name in settings_by_score()}
        settings = {name: value for name, value in given.items() if value is not None}
        values = {name: getattr(self, name) for name in _CONFIG}
        return validated(DetectorConfig, values | {"weights": _text(self.weights), "settings": settings})

    def _resolved(self) -> Settings:
        config = self._config()
        return resolve(config.preset, config.score, config.settings, seed=config.seed)

    def prepare_extractor(self) -> FeatureExtractor:
        """The feature extractor that `fit` will use: encodes images before or without fitting.

        Raises:
            SettingsError: if there is no such encoder or backend.
        """
        config, device = self._config(), torch_device(self.device)
        spec = encoder_spec(config.encoder, config.stages, config.weights, config.decoding)
        if self._extractor is None or not self._extractor.is_for(spec, device, self.backend):
            if hasattr(self, "_model"):
                return FeatureExtractor(spec, device, self.backend, _path(self.store), self.workers)
            self._extractor = FeatureExtractor(spec, device, self.backend)
        self._extractor.store, self._extractor.workers = _path(self.store), self.workers
        return self._extractor

    @property
    def extractor_(self) -> FeatureExtractor:
        """The feature extractor of a model fitted to images. Raises NotFittedError for other models."""
        model = self._fitted()
        if model.encoder is None:
            raise NotFittedError("this model was fitted to features and has no encoder; use score_features")
        if self._extractor is None:
            device = torch_device(self.device)
            self._extractor = FeatureExtractor(
                model.encoder, device, self.backend, weights_sha256=model.encoder_sha256, channels=model.channels
            )
        self._extractor.store, self._extractor.workers = _path(self.store), self.workers
        return self._extractor


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
