"""scikit-learn's estimator idiom without importing scikit-learn, which takes as long as scoring an image."""

import inspect
from typing import Any, Self


class Estimator:
    """Parameters are what `__init__` takes and stores under the same names; `sklearn.base.clone` works on them."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """All parameters, with their defaults."""
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name. `deep` is there for scikit-learn; no parameter is an estimator."""
        return {name: getattr(self, name, default) for name, default in self._defaults().items()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters.

        Raises:
            ValueError: for an unknown name, as scikit-learn does.
        """
        unknown = params.keys() - self._defaults().keys()
        if unknown:
            raise ValueError(f"no parameter {sorted(unknown)}; choose among {', '.join(self._defaults())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator  # noqa: PLC0415 - only scikit-learn itself asks

        return BaseEstimator.__sklearn_tags__(self)

    def __repr__(self) -> str:
        defaults = self._defaults()
        changed = (f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name])
        return f"{type(self).__name__}({', '.join(changed)})"
