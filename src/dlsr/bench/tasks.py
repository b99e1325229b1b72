"""The tasks of a suite, from a TOML file: which images are in distribution, and which are not.

`suite.toml` beside this file is the suite that is shipped; its first lines describe the format.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dlsr.bench.datasets import CIFAR_LIKE_IDS, annotated_classes
from dlsr.config import Frozen, validated
from dlsr.errors import InputError, SettingsError, one_line
from dlsr.images.sources import ImageDataset, open_images
from dlsr.images.transforms import Protocol

SHIPPED = Path(__file__).with_name("suite.toml")
"""The suite that is used unless a file is given."""
HELP = "see docs/datasets.md for the format"

Indices = NDArray[np.intp]
Patterns = tuple[str, ...]

KNOWN_CLASSES: Mapping[str, Patterns] = {"cifar-like": CIFAR_LIKE_IDS}
"""Lists of classes that every task file can refer to."""


class ImageSet(Frozen):
    """Images of a folder or tar, chosen by their names and classes."""

    images: str
    """Folder or tar, relative to the data root."""
    keep: Patterns = ()
    """Only names that match one of these globs. A name is the path; `*` also matches `/`."""
    drop: Patterns = ()
    """No names that match one of these."""
    classes: Patterns | str | None = None
    """Only these classes, as globs; or the name of a list in the file's `[classes]`, or in `KNOWN_CLASSES`."""
    without_classes: Patterns | str | None = None
    """None of these."""
    annotations: str | None = None
    """Name of a file in the folder or tar with lines `FILE<tab>CLASS`; without it, an image's folder is its class."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many, instead of the task's `training_images` or `test_images`."""


class TaskDefinition(Frozen):
    """A task: ID images to fit to, other ID images and OOD images to measure on."""

    name: str = Field(min_length=1)
    half: str | None = None
    """A label; the report gives the average of each."""
    protocol: Protocol = "native"
    train: ImageSet | None = None
    test: ImageSet | None = None
    id: ImageSet | None = None
    """Instead of `train` and `test`: `training_images` of these at random, and the rest for testing."""
    ood: dict[str, ImageSet] = Field(min_length=1)
    training_images: int | None = Field(default=None, ge=1)
    """At most this many; None for the file's."""
    test_images: int | None = Field(default=None, ge=1)
    """At most this many of each test set; None for the file's."""

    @model_validator(mode="after")
    def _has_id_images(self) -> "TaskDefinition":
        if (self.train is None) != (self.test is None) or (self.train is None) == (self.id is None):
            raise SettingsError("give train and test, or id with training_images")
        if self.id is not None and self.training_images is None:
            raise SettingsError("give training_images: this many of id, and the rest for testing")
        if self.id is not None and self.id.limit is not None:
            raise SettingsError("id takes no limit; give training_images and test_images")
        if "ID" in self.ood or "train" in self.ood:
            raise SettingsError("an OOD set cannot be called ID or train; give it another name")
        return self


class Suite(Frozen):
    """A task file."""

    training_images: int = Field(default=5000, ge=1)
    test_images: int = Field(default=2000, ge=1)
    seed: int = Field(default=0, ge=0)
    """Of all draws of images."""
    classes: dict[str, Patterns] = Field(default={})
    """Lists of classes, by the name that tasks refer to."""
    detectors: dict[str, dict[str, Any]] = Field(default={})
    """What is compared: `detector`, a name of the registry, and its settings."""
    tasks: tuple[TaskDefinition, ...] = Field(min_length=1)


@dataclass(frozen=True)
class SuiteTask:
    """The images of a task."""

    name: str
    half: str | None
    protocol: Protocol
    train: ImageDataset
    test: ImageDataset
    ood: Mapping[str, ImageDataset]

    def datasets(self) -> dict[str, ImageDataset]:
        """All datasets by name: `train`, `ID` and the OOD datasets."""
        return {"train": self.train, "ID": self.test, **self.ood}


def read_suite(path: Path) -> Suite:
    """Read a task file.

    Raises:
        SettingsError: if it is missing, not TOML, or has a mistake; the message names the task and the key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"the task file '{path}' does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read the task file '{path}': {one_line(error)}; {HELP}") from error
    tasks = content.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise SettingsError(f"in '{path}', tasks must be tables, each with a line [[tasks]]; {HELP}")
    for i, task in enumerate(tasks):
        with_mistake = f"task '{task.get('name', i + 1)}' in '{path}'"
        _validated(TaskDefinition, task, with_mistake)
    suite: Suite = _validated(Suite, content, f"'{path}'")
    names = [task.name for task in suite.tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(f"'{path}' has two tasks '{twice}'; give each a name of its own")
    return suite


def chosen_tasks(suite: Suite, only: Sequence[str]) -> list[TaskDefinition]:
    """The tasks with these names, all if there are none. Raises SettingsError for an unknown name."""
    names = [task.name for task in suite.tasks]
    if unknown := [name for name in only if name not in names]:
        raise SettingsError(f"there is no task '{unknown[0]}'; choose among {', '.join(names)}")
    return [task for task in suite.tasks if not only or task.name in only]


@dataclass
class TaskOpener:
    """Finds the images of tasks. Each folder or tar is listed once."""

    suite: Suite
    root: Path
    """Folder that paths in the file are relative to."""
    _opened: dict[Path, ImageDataset] = field(default_factory=dict)
    _annotated: dict[tuple[Path, str], dict[str, str]] = field(default_factory=dict)

    def open(self, task: TaskDefinition) -> SuiteTask:
        """The images of a task, drawn with the suite's seed.

        Raises:
            InputError: if images are missing, if a dataset has none, or if two datasets have the same images; the
                message names the task and the key.
            SettingsError: for an unknown list of classes.
        """
        most = task.training_images or self.suite.training_images
        few, seed = task.test_images or self.suite.test_images, self.suite.seed
        of_train, of_test = (chosen and chosen.limit for chosen in (task.train, task.test))
        found = {f"ood.{name}": self._set(task, f"ood.{name}", chosen) for name, chosen in task.ood.items()}
        if task.id is not None:
            found["id"] = inside = self._set(task, "id", task.id)
            if most >= len(inside):
                raise InputError(
                    f"task '{task.name}', key training_images: id has {len(inside)} images, so {most} leave none for "
                    "testing; give fewer"
                )
            order = np.random.default_rng(seed).permutation(len(inside))
            train, test = (inside.subset(sorted(int(i) for i in part)) for part in (order[:most], order[most:]))
        else:
            assert task.train is not None
            assert task.test is not None
            found["train"] = train = self._set(task, "train", task.train)
            found["test"] = test = self._set(task, "test", task.test)
        _check_disjoint(task, found)
        return SuiteTask(
            task.name,
            task.half,
            task.protocol,
            train.sample(of_train or most, seed),
            test.sample(of_test or few, seed),
            {name: found[f"ood.{name}"].sample(chosen.limit or few, seed) for name, chosen in task.ood.items()},
        )

    def _set(self, task: TaskDefinition, key: str, chosen: ImageSet) -> ImageDataset:
        path = self.root / chosen.images
        try:
            if path not in self._opened:
                self._opened[path] = open_images(path)
        except InputError as error:
            raise InputError(f"task '{task.name}', key {key}.images: {error}") from error
        items = self._opened[path].items
        kept = ImageDataset(
            [item for item, matches in zip(items, self._matches(task, key, chosen, path), strict=True) if matches]
        )
        if not kept.items:
            raise InputError(
                f"task '{task.name}', key {key}: none of the {len(items)} images in '{path}' match, such as "
                f"'{items[0].name}'; change keep, drop or classes"
            )
        return kept

    def _matches(self, task: TaskDefinition, key: str, chosen: ImageSet, path: Path) -> list[bool]:
        names = [item.name for item in self._opened[path].items]
        matches = [True] * len(names)
        if chosen.keep:
            matches = _both(matches, map(_any_of(chosen.keep), names))
        if chosen.drop:
            dropped = _any_of(chosen.drop)
            matches = _both(matches, (not dropped(name) for name in names))
        inside = self._patterns(task, f"{key}.classes", chosen.classes)
        outside = self._patterns(task, f"{key}.without_classes", chosen.without_classes)
        if inside or outside:
            classes = self._classes(task, key, chosen, path, names)
            if inside:
                matches = _both(matches, map(_any_of(inside), classes))
            if outside:
                dropped = _any_of(outside)
                matches = _both(matches, (not dropped(name) for name in classes))
        return matches

    def _patterns(self, task: TaskDefinition, key: str, given: Patterns | str | None) -> Patterns:
        if not isinstance(given, str):
            return given or ()
        lists = {**KNOWN_CLASSES, **self.suite.classes}
        if given not in lists:
            raise SettingsError(
                f"task '{task.name}', key {key}: no list of classes is called '{given}' ({', '.join(lists)}); give "
                "one in [classes], or the classes themselves"
            )
        return lists[given]

    def _classes(self, task: TaskDefinition, key: str, chosen: ImageSet, path: Path, names: Sequence[str]) -> list[str]:
        if chosen.annotations is None:
            return [Path(name).parent.name for name in names]
        place = path, chosen.annotations
        if place not in self._annotated:
            found = annotated_classes(*place)
            if found is None:
                raise InputError(
                    f"task '{task.name}', key {key}.annotations: there is no file '{chosen.annotations}' in '{path}'; "
                    "give the name of one with lines of FILE<tab>CLASS"
                )
            self._annotated[place] = found
        by_file = self._annotated[place]
        return [by_file.get(Path(name).name, "") for name in names]


@dataclass(frozen=True)
class Draw:
    """The images of a task that one run uses: positions in its datasets."""

    train: Indices
    intruders: Mapping[str, Indices]
    """OOD images among the training images, by their set."""
    ood: Mapping[str, Indices]
    """The other OOD images, to measure on."""


def draw(task: SuiteTask, training_images: int | None, contamination: float, seed: int) -> Draw:
    """Choose training images at random, and OOD images to mix into them.

    Args:
        task: the images.
        training_images: at most this many of the training images; None for all.
        contamination: share, in [0, 1), of the images that are fitted to which are OOD.
        seed: of the choice.

    Raises:
        InputError: if that takes more than half of the OOD images, or a whole set.
    """
    random, n = np.random.default_rng(seed), len(task.train)
    train = np.arange(n)
    if training_images is not None and training_images < n:
        train = np.sort(random.choice(n, training_images, replace=False))
    sizes = {name: len(images) for name, images in task.ood.items()}
    count, pool = round(contamination / (1 - contamination) * len(train)), sum(sizes.values())
    if count > pool // 2:
        raise InputError(
            f"a contamination of {contamination:g} needs {count} OOD images, more than half of the {pool} of task "
            f"'{task.name}'; give a smaller share or fewer training images"
        )
    chosen = np.zeros(pool, np.bool_)
    chosen[random.permutation(pool)[:count]] = True
    parts = dict(zip(sizes, np.split(chosen, np.cumsum(list(sizes.values()))[:-1]), strict=True))
    for name, part in parts.items():
        if part.all():
            raise InputError(
                f"a contamination of {contamination:g} takes all of '{name}' of task '{task.name}'; give less"
            )
    return Draw(
        train,
        {name: np.flatnonzero(part) for name, part in parts.items() if part.any()},
        {name: np.flatnonzero(~part) for name, part in parts.items()},
    )


def _validated(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    try:
        return validated(kind, values)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}; {HELP}") from error


def _any_of(patterns: Sequence[str]) -> Any:
    return re.compile("|".join(translate(pattern) for pattern in patterns)).match


def _both(first: Sequence[bool], second: Any) -> list[bool]:
    return [a and bool(b) for a, b in zip(first, second, strict=True)]


def _check_disjoint(task: TaskDefinition, found: Mapping[str, ImageDataset]) -> None:
    # A folder is listed once, so the same file is the same object in all datasets.
    for (one, images), (other, others) in combinations(found.items(), 2):
        if one.startswith("ood.") and other.startswith("ood."):
            continue
        shared = {id(item) for item in images.items} & {id(item) for item in others.items}
        if shared:
            raise InputError(
                f"task '{task.name}': {len(shared)} images are in both {one} and {other}; change keep, drop or classes"
            )
