"""Results as a dataset that FiftyOne imports: its `FiftyOneImageClassificationDataset`, two JSON files.

`data.json` says where each image is, `labels.json` what its label is: `ID`, `OOD` or `unreadable`, with score, p-value,
top layer or error as attributes. See "FiftyOneImageClassificationDataset" in
https://docs.voxel51.com/user_guide/import_datasets.html
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from dlsr.reports.formats.base import (
    UNREADABLE,
    VERDICTS,
    FolderFormat,
    absolute,
    json_file,
    verdict_of,
)
from dlsr.results import Result


class FiftyOne(FolderFormat):
    """A folder for `fiftyone.Dataset.from_dir`."""

    name: ClassVar[str] = "fiftyone"
    files: ClassVar[tuple[str, ...]] = ("data.json", "labels.json")

    def _write(self, folder: Path, results: Iterable[Result]) -> None:
        classes = ", ".join(f'"{name}"' for name in (*VERDICTS, UNREADABLE))
        with (
            json_file(folder / "data.json", "{", "}") as data,
            json_file(folder / "labels.json", f'{{"classes": [{classes}], "labels": {{', "}}") as labels,
        ):
            # Names need not be unique, and FiftyOne's keys must be.
            for number, result in enumerate(results):
                key = f"{number:06}"
                data.add(self._path(result.path), key)
                labels.add({"label": verdict_of(result), "attributes": self._numbers_of(result)}, key)

    def _path(self, name: str) -> str:
        root = self.images.root
        return absolute(name) if root is None else self.images.below(root, name)
