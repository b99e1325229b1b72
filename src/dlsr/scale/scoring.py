"""Scoring a part of a collection: what one task does, and the files it leaves. Knows nothing of who hands out tasks.

A run is a folder, here or behind any fsspec URL:

    run.json                   what was scored, by which model, cut how
    model/                     the model, for workers that cannot see its directory
    scores/part-000000.parquet results of the images that could be read
    errors/part-000000.parquet names and reasons of those that could not
    attempts/part-000000.json  only while a part is under way

Each image is in `scores/` or in `errors/`, once. A part is done when its file in `scores/` is there, which is written
last and whole; so a run that was stopped anywhere goes on with the parts that are not done.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlsr.artifact import MANIFEST
from dlsr.detector import Detector, Result
from dlsr.errors import ArtifactError, InputError, one_line
from dlsr.files import replacing
from dlsr.images import ImageItem, ImageSet, in_groups
from dlsr.output import results_table
from dlsr.scale.parts import Part, filesystem, items_of

SCHEMA = 1
AT_ONCE = 512
"""Images that are read ahead of the detector: what bounds a worker's memory."""
CAREFUL_AFTER = 2
"""After so many attempts that killed their worker, a part is scored image by image, to find the one that does it."""


@dataclass(frozen=True)
class PartDone:
    """What became of a part."""

    index: int
    images: int
    ood: int
    errors: int


class RunFolder:
    """The files of a run.

    Args:
        url: a folder, or any fsspec URL of one.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = filesystem(url)

    def claim(self, about: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one that is the same.

        Raises:
            ArtifactError: if the folder holds another run, or something that is none.
        """
        path = f"{self._root}/run.json"
        wanted = {"schema": SCHEMA, **about}
        if self._fs.exists(path):
            try:
                found = json.loads(self._fs.cat_file(path))
            except ValueError as error:
                raise ArtifactError(f"'{self.url}/run.json' is damaged; give another output folder") from error
            if found != wanted:
                differ = sorted(k for k in wanted.keys() | found.keys() if found.get(k) != wanted.get(k))
                raise ArtifactError(
                    f"'{self.url}' holds a run with another {', '.join(differ)}; give another output folder"
                )
            return
        self._write("run.json", json.dumps(wanted, indent=2).encode())

    def put_model(self, folder: Path) -> None:
        """Copy a model directory into the run, unless it is there. `model.json` goes last.

        Raises:
            ArtifactError: if it cannot be read.
        """
        try:
            files = sorted(
                (path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == MANIFEST
            )
            for path in files:
                if not self._fs.exists(f"{self._root}/model/{path.name}"):
                    self._write(f"model/{path.name}", path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"cannot read '{folder}': {error.strerror}; give a model directory") from error

    def load_model(self, **options: Any) -> Detector:
        """The detector of `put_model`; options as for `Detector.load`."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self._fs.ls(f"{self._root}/model", detail=False):
                Path(folder, Path(path).name).write_bytes(self._fs.cat_file(path))
            return Detector.load(folder, **options)

    def is_done(self, part: Part) -> bool:
        """Whether a part needs no more work."""
        return bool(self._fs.exists(self._path("scores", part, "parquet")))

    def done(self, parts: list[Part]) -> set[int]:
        """Indices of the parts that are done, by one listing."""
        folder = f"{self._root}/scores"
        names = {Path(path).name for path in self._fs.ls(folder, detail=False)} if self._fs.isdir(folder) else set()
        return {part.index for part in parts if f"part-{part.index:06}.parquet" in names}

    def write(self, part: Part, results: list[Result]) -> None:
        """Write a part's results, those of unreadable images apart and first."""
        failed = [result for result in results if result.error is not None]
        scored = [result for result in results if result.error is None]
        if failed:
            self._write(self._name("errors", part, "parquet"), _parquet_bytes(failed))
        self._write(self._name("scores", part, "parquet"), _parquet_bytes(scored))
        if self._fs.exists(self._path("attempts", part, "json")):
            self._fs.rm_file(self._path("attempts", part, "json"))

    def attempts(self, part: Part) -> dict[str, Any]:
        """How often a part was begun without an end, and which images killed their worker."""
        path = self._path("attempts", part, "json")
        fresh: dict[str, Any] = {"attempts": 0, "current": None, "poisoned": []}
        if not self._fs.exists(path):
            return fresh
        try:
            return fresh | dict(json.loads(self._fs.cat_file(path)))
        except ValueError:  # the worker was killed while it wrote to a file system that does not replace whole files
            return fresh | {"attempts": 1}

    def note(self, part: Part, attempts: Mapping[str, Any]) -> None:
        """Keep what `attempts` is to tell next time."""
        self._write(self._name("attempts", part, "json"), json.dumps(attempts).encode())

    def _name(self, folder: str, part: Part, suffix: str) -> str:
        return f"{folder}/part-{part.index:06}.{suffix}"

    def _path(self, folder: str, part: Part, suffix: str) -> str:
        return f"{self._root}/{self._name(folder, part, suffix)}"

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        if "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)):
            with replacing(Path(path)) as temporary:
                temporary.write_bytes(content)
        else:  # object stores put whole objects or none
            self._fs.pipe_file(path, content)


def score_part(detector: Detector, part: Part, run: RunFolder) -> PartDone:
    """Score a part and write its files, unless it is done.

    What cannot be read is a row in `errors/`: an image, or a whole part whose tar or table is damaged. An image that
    kills the process is found by the attempts that follow, and becomes such a row too.
    """
    if run.is_done(part):
        return PartDone(part.index, 0, 0, 0)
    attempts = run.attempts(part)
    if attempts["current"] is not None:
        attempts["poisoned"].append(attempts["current"])
    attempts |= {"attempts": attempts["attempts"] + 1, "current": None}
    run.note(part, attempts)
    careful = attempts["attempts"] > CAREFUL_AFTER
    results: list[Result] = []
    try:
        for items in in_groups(items_of(part), 1 if careful else AT_ONCE):
            results.extend(_scored(detector, items, part, run, attempts, careful))
    except (OSError, ValueError, tarfile.TarError, InputError) as error:
        results.append(Result(part.url, error=f"the rest of this part cannot be read: {one_line(error)}"))
    run.write(part, results)
    ood = sum(bool(result.is_ood) for result in results)
    errors = sum(result.error is not None for result in results)
    return PartDone(part.index, len(results), ood, errors)


def _scored(
    detector: Detector,
    items: list[ImageItem],
    part: Part,
    run: RunFolder,
    attempts: dict[str, Any],
    careful: bool,
) -> Iterator[Result]:
    if not careful:
        yield from detector.results(ImageSet(items))
        return
    for item in items:
        if item.name in attempts["poisoned"]:
            yield Result(item.name, error="reading or scoring it killed the worker")
            continue
        run.note(part, attempts | {"current": item.name})
        yield from detector.results(ImageSet([item]))


def _parquet_bytes(results: list[Result]) -> bytes:
    from pyarrow import parquet  # noqa: PLC0415 - an optional extra

    buffer = io.BytesIO()
    parquet.write_table(results_table(results), buffer)
    return buffer.getvalue()
