"""Results of `Detector.detect`: scores, p-values and verdicts of many images, or of one."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.fdr import rejected
from dlsr.calibration.promise import promise
from dlsr.calibration.reasons import Reason, listed, sentence
from dlsr.errors import MissingExtraError
from dlsr.files import replacing

Array = NDArray[np.float64]

COLUMNS = ("path", "score", "p_value", "is_ood", "top_layer", "error")
"""Columns of a table of results."""
SHOWN = 10
"""Images in a notebook's table."""


class TextWriter(Protocol):
    """An open text file, or what writes like one."""

    def write(self, text: str, /) -> object:
        """Write a text."""


@dataclass(frozen=True)
class Result:
    """The result of one image. An unreadable image has an `error` and nothing else."""

    path: str
    score: float | None = None
    """Larger = more OOD."""
    p_value: float | None = None
    """Share of ID images with an equal or higher score, in (0, 1]."""
    is_ood: bool | None = None
    """Whether the p-value is at most the false-alarm rate, or is rejected at a false discovery rate."""
    top_layer: str | None = None
    """The layer that deviates most from the calibration images."""
    error: str | None = None
    layers: Mapping[str, float] | None = None
    """How far each layer's score lies above the calibration images' mean, in their standard deviations."""
    nearest: tuple[int, ...] | None = None
    """The kept training images nearest to this one, nearest first: indices into `examples_`."""
    reasons: tuple[Reason, ...] | None = None
    """Properties in which the image lies outside the range of the ID images, see `dlsr.explain`; None if not asked
    for."""
    group: str | None = None
    """Of an image that was refused: the group of such images that it belongs to, or `alone`; see `dlsr.group`."""

    @property
    def sentence(self) -> str:
        """The verdict with its reasons, as far as they are known; of an unreadable image why it could not be read."""
        if self.is_ood is None:
            return f"Cannot be read: {self.error}."
        return sentence(self.is_ood, self.reasons or ())

    def row(self, columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """The values of columns, which are fields, by name. Reasons are one text."""
        values = {name: getattr(self, name) for name in columns}
        if values.get("reasons") is not None:
            values["reasons"] = listed(values["reasons"])
        return values


@dataclass(frozen=True, eq=False, repr=False)
class Results(Sequence[Result]):
    """Results of many images, in their order: arrays over all, or a `Result` by index.

    Unreadable images have NaN in the arrays of floats, -1 in `verdicts` and `nearest`, and a reason in `errors`.
    """

    paths: list[str]
    scores: Array
    """Shape `(N,)`, larger = more OOD."""
    p_values: Array
    """Shape `(N,)`: share of ID images with an equal or higher score, in (0, 1]."""
    verdicts: NDArray[np.int8]
    """Shape `(N,)`: 1 = OOD, 0 = ID, -1 = unreadable."""
    layers: Array
    """Shape `(N, M)`: each layer's score, standardised on the calibration images."""
    errors: list[str | None]
    """Why an image could not be read; None if it could."""
    layer_names: tuple[str, ...]
    false_alarm_rate: float
    threshold: float
    """Images with a higher score are called OOD."""
    nearest: NDArray[np.intp] | None = None
    """Shape `(N, k)`: the nearest of the kept training images, see `Detector.examples_`; None if none are kept."""
    fdr: float | None = None
    """The false discovery rate, if verdicts follow one instead of the false-alarm rate; see `at_fdr`."""

    @classmethod
    def joined(cls, parts: Sequence["Results"]) -> "Results":
        """Several results of one detector, with verdicts at its false-alarm rate, as one. Needs at least one."""
        first = parts[0]
        return cls(
            paths=[path for part in parts for path in part.paths],
            scores=np.concatenate([part.scores for part in parts]),
            p_values=np.concatenate([part.p_values for part in parts]),
            verdicts=np.concatenate([part.verdicts for part in parts]),
            layers=np.concatenate([part.layers for part in parts]),
            errors=[error for part in parts for error in part.errors],
            layer_names=first.layer_names,
            false_alarm_rate=first.false_alarm_rate,
            threshold=first.threshold,
            nearest=None
            if first.nearest is None
            else np.concatenate([part.nearest for part in parts if part.nearest is not None]),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, error = self.paths[index], self.errors[index]
        if error is not None:
            return Result(path, error=error)
        by_layer = dict(zip(self.layer_names, self.layers[index].tolist(), strict=True))
        return Result(
            path,
            float(self.scores[index]),
            float(self.p_values[index]),
            bool(self.verdicts[index] == 1),
            max(by_layer, key=by_layer.__getitem__),
            layers=by_layer,
            nearest=None if self.nearest is None else tuple(self.nearest[index].tolist()),
        )

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))

    @property
    def unreadable(self) -> dict[str, str]:
        """Reasons by path, of the images that could not be read."""
        return {path: error for path, error in zip(self.paths, self.errors, strict=True) if error is not None}

    @property
    def ood(self) -> int:
        """Number of images called OOD."""
        return int((self.verdicts == 1).sum())

    @property
    def rule(self) -> str:
        """What verdicts follow, in words."""
        if self.fdr is None:
            return promise(self.false_alarm_rate)
        return f"a false discovery rate of {100 * self.fdr:g} %"

    def at_fdr(self, rate: float) -> "Results":
        """These results with verdicts at a false discovery rate: the share of ID images among those called OOD.

        The rate limits the expected share. A verdict depends on all images: take all that are judged together. See
        `dlsr.calibration.fdr`.

        Args:
            rate: in (0, 1).

        Raises:
            SettingsError: for a rate outside (0, 1).
        """
        is_ood, readable = rejected(self.p_values, rate), self.verdicts >= 0
        kept, threshold = self.scores[readable & ~is_ood], self.threshold
        if len(kept):
            threshold = float(kept.max())
        elif readable.any():
            threshold = float(np.nextafter(self.scores[readable].min(), -np.inf))
        verdicts = np.where(readable, is_ood, -1).astype(np.int8)
        return replace(self, verdicts=verdicts, threshold=threshold, fdr=rate)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with `COLUMNS` and a column for each layer's deviation.

        `is_ood` is of pandas' type `boolean`, so that `frame[frame["is_ood"]]` works with unreadable images, too.

        Raises:
            MissingExtraError: without pandas.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise MissingExtraError("pandas", "pandas") from None
        frame = pd.DataFrame([result.row() for result in self], columns=list(COLUMNS))
        frame = frame.astype({"score": "float64", "p_value": "float64", "is_ood": "boolean"})
        return frame.assign(**dict(zip(self.layer_names, self.layers.T, strict=True)))

    def to_csv(self, path: str | Path) -> None:
        """Write a row for each image, with `COLUMNS`.

        Raises:
            OutputError: if the file cannot be written.
        """
        with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            write_csv(file, self)

    def __repr__(self) -> str:
        lines = [
            f"Results of {len(self)} images: {self.ood} out of distribution, {len(self.unreadable)} unreadable, at "
            f"{self.rule}",
            f"  scores, p_values, verdicts: shape {self.scores.shape}; threshold {self.threshold:.6g}",
            f"  layers: shape {self.layers.shape}, {', '.join(self.layer_names)}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: a summary and the images with the highest scores."""
        order = [int(i) for i in np.argsort(-self.scores, kind="stable") if self.errors[int(i)] is None]
        cells = "".join(
            f"<tr><td>{escape(result.path)}</td><td>{result.score:.3f}</td><td>{result.p_value:.3g}</td>"
            f"<td>{'OOD' if result.is_ood else 'ID'}</td><td>{escape(str(result.top_layer))}</td></tr>"
            for result in (self[i] for i in order[:SHOWN])
        )
        head = "".join(f"<th>{name}</th>" for name in ("path", "score", "p-value", "verdict", "top layer"))
        rest = f"<p>and {len(order) - SHOWN} more images with lower scores</p>" if len(order) > SHOWN else ""
        summary = escape(repr(self).splitlines()[0])
        return f"<p>{summary}</p><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>{rest}"


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins with one of these for a formula, which may run programs."""


def write_csv(file: TextWriter, results: Iterable[Result], columns: Sequence[str] = COLUMNS) -> None:
    """Write a header and a line for each result, see `write_rows`."""
    write_rows(file, columns, (result.row(columns) for result in results))


def write_rows(file: TextWriter, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a header with these columns and a line for each row as CSV; missing values are left empty.

    A text that a spreadsheet would take for a formula, such as a file's name, gets an apostrophe in front of it.
    """
    table = csv.DictWriter(file, columns)
    table.writeheader()
    for row in rows:
        table.writerow({name: no_formula(value) for name, value in row.items()})


def no_formula(cell: Any) -> Any:
    """A cell of a CSV file; with an apostrophe in front of it, if a spreadsheet would take it for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_SIGNS) else cell
