"""Groups of images, such as the frames of one video, from the names of their files."""

import csv
import re
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePath

from dlsr.errors import InputError, SettingsError

FOLDER = "folder"
COLUMNS = ("path", "group")


def group_labels(names: Sequence[str], group_by: str) -> list[str]:
    """A label for each image, the same for images of one group.

    Args:
        names: of the images, as reports give them.
        group_by: `folder`, for the folder that an image is in; the path of a CSV file, which ends in `.csv` and has the
            columns `path` and `group`; or a regular expression, which is searched for in the names: a group is what its
            brackets match, or all that it matches if it has none.

    Raises:
        SettingsError: for an expression that is not valid.
        InputError: if the file cannot be read, or images are left without a group.
    """
    labels = _labels(names, group_by)
    found = [label for label in labels if label is not None]
    if len(found) < len(names):
        missing = names[labels.index(None)]
        raise InputError(
            f"'{group_by}' gives no group to {len(names) - len(found)} of {len(names)} images, the first is {missing}; "
            f"correct it, or leave it out"
        )
    return found


def check_group_by(names: Sequence[str], group_by: str) -> None:
    """Raise as `group_labels` if no image would get a group: those that cannot be read need none."""
    if all(label is None for label in _labels(names, group_by)):
        group_labels(names, group_by)


def taken_from(labels: Sequence[Hashable], places: Sequence[int]) -> list[Hashable]:
    """The labels at these places, counted from 0: a Series of pandas would take numbers for names of its index."""
    every = list(labels)
    return [every[place] for place in places]


def _labels(names: Sequence[str], group_by: str) -> Sequence[str | None]:
    if group_by == FOLDER:
        return [str(PurePath(name).parent) for name in names]
    return _from_file(names, Path(group_by)) if group_by.endswith(".csv") else _from_pattern(names, group_by)


def _from_pattern(names: Sequence[str], pattern: str) -> list[str | None]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"'{pattern}' is no regular expression: {error}; correct it, or give folder") from error
    matches = map(compiled.search, names)
    return [match and "/".join(part or "" for part in match.groups() or (match[0],)) for match in matches]


def _from_file(names: Sequence[str], path: Path) -> list[str | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
                raise InputError(f"'{path}' has no column '{missing[0]}'; its first line must name path and group")
            label_of = {row["path"]: row["group"] or None for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({error}); give a CSV file with the columns path and group") from error
    return [label_of.get(name) for name in names]
