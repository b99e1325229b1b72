"""The parameters of a detector as one validated config, and the feature extractor that they describe."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dlsr.config import DetectorConfig, validated
from dlsr.encoders import encoder_spec
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.errors import SettingsError
from dlsr.estimator import Estimator
from dlsr.fitted_detector import FittedDetector
from dlsr.runtime.backends import choose_backend
from dlsr.runtime.devices import resolve_device
from dlsr.scorers import Settings, resolve
from dlsr.scorers.base import PRESET_POOLING, setting_names

_CONFIG = tuple(name for name in DetectorConfig.model_fields if name != "settings")


class Configured(FittedDetector, Estimator):
    """Base of `Detector`: its parameters, the settings that they resolve to, and their feature extractor."""

    encoder: str
    stages: Sequence[int] | None
    weights: str | os.PathLike[str] | None

    _prepared: FeatureExtractor | None = None
    """Of the next fit."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        named = {name: default for name, default in super()._defaults().items() if name != "settings"}
        return named | dict.fromkeys(setting_names())

    def _set_score_settings(self, settings: Mapping[str, Any]) -> None:
        """Every setting of every score is a parameter, None unless given."""
        known = setting_names()
        for name in (*known, *settings):
            if name not in known:
                raise SettingsError(f"no score has a setting '{name}'; choose among {', '.join(known)}")
            if name in DetectorConfig.model_fields or hasattr(type(self), name):
                raise SettingsError(f"a score's setting cannot be called '{name}', as an argument of Detector is")
            setattr(self, name, settings.get(name))

    def _config(self) -> DetectorConfig:
        given = {name: getattr(self, name, None) for name in setting_names()}
        settings = {name: value for name, value in given.items() if value is not None}
        values = {name: getattr(self, name) for name in _CONFIG}
        weights = None if self.weights is None else os.fspath(self.weights)
        return validated(DetectorConfig, values | {"weights": weights, "settings": settings})

    def _resolved(self) -> Settings:
        config = self._config()
        return resolve(config.preset, config.score, config.settings, seed=config.seed)

    def prepare_extractor(self) -> FeatureExtractor:
        """The feature extractor that `fit` will use: encodes images before or without fitting.

        Raises:
            SettingsError: for settings that cannot work, or an unknown encoder or backend.
        """
        preset = self._resolved().preset
        config, device = self._config(), resolve_device(self.device)
        pooling = config.pooling or PRESET_POOLING[preset]
        spec = encoder_spec(
            config.encoder, config.stages, config.weights, config.decoding, pooling, config.resizer, config.precision
        )
        choose_backend(self.backend, device, spec.precision)
        for extractor in (self._extractor, self._prepared):
            if extractor is not None and extractor.is_for(spec, device, self.backend):
                break
        else:
            extractor = self._prepared = FeatureExtractor(spec, device, self.backend)
        return self._current(extractor)
