"""The images that a model was fitted to, so that it can be fitted again together with others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.groups import Groups
from dlsr.config import GIVEN
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded
from dlsr.encoding.store import KEY_BYTES, empty_table
from dlsr.errors import InputError
from dlsr.method.noise import DIGEST_BYTES


@dataclass(frozen=True)
class FittedImages:
    """The readable images of a fit, in order. Their features are in the feature store, if anywhere."""

    names: tuple[str, ...]
    keys: NDArray[np.uint8]
    """SHA-256 of their files, the keys of the feature store, shape `(N, 32)`."""
    groups: NDArray[np.int64] | None = None
    """A number for each, shape `(N,)`, if groups were given to the fit; else they follow from names or features."""

    def __len__(self) -> int:
        return len(self.names)

    def among(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of other images, with these SHA-256 of their files, shape `(R, 32)`, are among them: shape `(R,)`."""
        known = set(map(bytes, self.keys))
        return np.array([bytes(key) in known for key in keys], np.bool_)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for saving."""
        arrays = {"names": np.frombuffer(json.dumps(self.names).encode(), np.uint8), "keys": self.keys}
        return arrays if self.groups is None else arrays | {"groups": self.groups}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`.

        Raises:
            KeyError: if an array is missing.
            ValueError: if the arrays do not belong together.
        """
        names, keys, groups = json.loads(arrays["names"].tobytes()), arrays["keys"], arrays.get("groups")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("the names of the images that it was fitted to are not a list of texts")
        if keys.shape != (len(names), KEY_BYTES) or keys.dtype != np.uint8:
            raise ValueError(f"the keys of {len(names)} images have shape {keys.shape} of {keys.dtype}")
        if groups is not None and (groups.shape != (len(names),) or groups.dtype != np.int64):
            raise ValueError(f"the groups of {len(names)} images have shape {groups.shape} of {groups.dtype}")
        return cls(tuple(names), keys, groups)

    @classmethod
    def of_fit(cls, images: Encoded, groups: Groups) -> Self:
        """The images of a fit with these groups."""
        return cls(tuple(images.readable_names), images.keys, groups.numbers if groups.by == GIVEN else None)

    def encoded(self, extractor: FeatureExtractor, again: Encoded | None = None) -> Encoded:
        """The images with their features, from the feature store. None is encoded.

        Args:
            extractor: that of the model.
            again: images in which features are looked for first.

        Raises:
            InputError: if features are missing.
            OutputError: if features are too large for memory and for the disk.
        """
        rows = {} if again is None else {key.tobytes(): row for row, key in enumerate(again.keys)}
        store = extractor.feature_store() if extractor.store is not None else None
        z0 = empty_table(len(self), extractor.encoder.c, None if store is None else store.folder)
        digests, missing = np.empty((len(self), DIGEST_BYTES), np.uint8), []
        for i, key in enumerate(map(bytes, self.keys)):
            if again is not None and key in rows:
                digests[i], z0[i] = again.digests[rows[key]], again.z0[rows[key]]
            elif store is not None and (known := store.get(key)) is not None:
                digests[i], z0[i] = known
            else:
                missing.append(self.names[i])
        if missing:
            where = "there is no feature store" if store is None else f"not in the feature store '{extractor.store}'"
            raise InputError(
                f"the features of {len(missing)} of the {len(self)} images that the model was fitted to are not known "
                f"({where}), the first is {missing[0]}; give the old images too, or fit anew to all images"
            )
        return Encoded(list(self.names), [None] * len(self), z0, digests, self.keys)
