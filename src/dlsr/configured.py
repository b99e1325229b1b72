"""The parameters of a detector as one validated config, and the feature extractor that they describe."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.copies import exact_groups, found_groups
from dlsr.calibration.groups import Groups
from dlsr.config import AUTO, GIVEN, NONE, DetectorConfig, validated
from dlsr.encoders import encoder_spec
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.errors import NotFittedError, SettingsError
from dlsr.estimator import Estimator
from dlsr.fitted import FittedAttributes
from dlsr.images.groups import group_labels
from dlsr.method.noise import row_digests
from dlsr.runtime.backends import Backend, choose_backend
from dlsr.runtime.devices import torch_device
from dlsr.scorers import Settings, resolve
from dlsr.scorers.base import PRESET_POOLING, Digests, setting_names

_CONFIG = tuple(name for name in DetectorConfig.model_fields if name != "settings")


class Configured(FittedAttributes, Estimator):
    """Base of `Detector`: its parameters, the settings that they resolve to, and their feature extractor."""

    encoder: str
    group_by: str
    stages: Sequence[int] | None
    weights: str | os.PathLike[str] | None
    device: str
    backend: Backend
    store: str | os.PathLike[str] | None
    workers: int

    _extractor: FeatureExtractor | None = None
    """Of the fitted model; kept, since loading an encoder takes seconds."""
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
        return validated(DetectorConfig, values | {"weights": _text(self.weights), "settings": settings})

    def _resolved(self) -> Settings:
        config = self._config()
        return resolve(config.preset, config.score, config.settings, seed=config.seed)

    def _grouped(
        self,
        names: Sequence[str] | None,
        z0: NDArray[np.float32],
        digests: Digests | None,
        groups: Sequence[Hashable] | None,
    ) -> Groups:
        """Groups of feature vectors: as given, or as `group_by` says.

        Raises:
            SettingsError, InputError: if groups cannot be had this way.
        """
        if groups is not None:
            if len(groups) != len(z0):
                raise SettingsError(f"there are {len(z0)} features, but {len(groups)} groups; give a label for each")
            return Groups.of(groups, GIVEN)
        if self.group_by == NONE:
            return Groups(np.arange(len(z0)), NONE)
        if self.group_by == AUTO:
            known = row_digests(z0) if digests is None else digests
            return Groups(found_groups(z0, known), AUTO, exact_groups(known))
        if names is None:
            raise SettingsError(f"features have no names to group by '{self.group_by}'; give groups instead")
        return Groups.of(group_labels(names, self.group_by), self.group_by)

    def prepare_extractor(self) -> FeatureExtractor:
        """The feature extractor that `fit` will use: encodes images before or without fitting.

        Raises:
            SettingsError: for settings that cannot work, or an unknown encoder or backend.
        """
        preset = self._resolved().preset
        config, device = self._config(), torch_device(self.device)
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
        return self._current(self._extractor)

    def _current(self, extractor: FeatureExtractor) -> FeatureExtractor:
        extractor.store, extractor.workers = _path(self.store), self.workers
        return extractor


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
