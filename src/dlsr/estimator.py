"""scikit-learn's estimator idiom without importing scikit-learn, which takes as long as scoring an image."""

import inspect
from typing import Any, Self


class Estimator:
    """Parameters are what `__init__` takes and stores under the same names; `sklearn.base.clone` works on them."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name. `deep` is there for scikit-learn; no parameter is an estimator."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters.

        Raises:
            ValueError: for a name that is none, as scikit-learn does.
        """
        unknown = params.keys() - set(self._parameter_names())
        if unknown:
            raise ValueError(f"no parameter {sorted(unknown)}; choose among {self._parameter_names()}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator  # noqa: PLC0415 - only scikit-learn itself asks

        return BaseEstimator.__sklearn_tags__(self)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = (f"{k}={v!r}" for k, v in self.get_params().items() if v != defaults[k].default)
        return f"{type(self).__name__}({', '.join(changed)})"
