"""The paper's benchmark sets by name: as a folder or tar below a data root, from torchvision or Hugging Face's hub."""

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import InputError, MissingExtraError, SettingsError, one_line
from dlsr.images.sources import ImageDataset, open_images

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Hub:
    """A set of the Hugging Face hub, for the package `datasets`."""

    repo: str
    config: str | None = None
    test: str = "test"
    """Its name for the test part."""
    image: str = "image"
    """Column with the images."""
    label: str | None = "label"
    """Column with the classes; None if there is none."""


@dataclass(frozen=True)
class DatasetInfo:
    """A benchmark set."""

    name: str
    test_images: int
    """In the whole test set, as the paper or the set's authors count them."""
    where: str
    """Where to get it."""
    aliases: tuple[str, ...] = ()
    """Other names of its folder or tar."""
    torchvision: str | None = None
    """Class of torchvision that reads and, if asked, downloads it."""
    train_images: int = 0
    """In the training set, for sets that can be ID."""
    hub: Hub | None = None
    """Where the Hugging Face hub has it."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the official archives, by file name, as far as they have been published."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its folder or tar, most likely first."""
        return (self.name, *self.aliases)


DATASETS: Mapping[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("cifar10", 10_000, "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar10_jpeg", "cifar-10"),
                    "CIFAR10", 50_000, Hub("uoft-cs/cifar10", image="img")),
        DatasetInfo("cifar100", 10_000, "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar-100",), "CIFAR100",
                    50_000, Hub("uoft-cs/cifar100", image="img", label="fine_label")),
        DatasetInfo("celeba", 19_962, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (aligned images)", (),
                    None, 162_770, Hub("flwrlabs/celeba", label=None)),
        DatasetInfo("imagenet100", 5_000, "the 100 classes of https://image-net.org that the paper names",
                    ("imagenet-100",), None, 130_000),
        DatasetInfo("svhn", 26_032, "http://ufldl.stanford.edu/housenumbers", ("svhn_crops",), "SVHN",
                    hub=Hub("ufldl-stanford/svhn", "cropped_digits")),
        DatasetInfo("lsun-c", 10_000, "LSUN (crop) of https://github.com/facebookresearch/odin", ("LSUN",)),
        DatasetInfo("lsun-r", 10_000, "LSUN (resize) of https://github.com/facebookresearch/odin", ("LSUN_resize",)),
        DatasetInfo("isun", 8_925, "iSUN of https://github.com/facebookresearch/odin", ("iSUN",)),
        DatasetInfo("textures", 5_640, "https://www.robots.ox.ac.uk/~vgg/data/dtd",
                    ("dtd", "dtd_5classes", "dtd-r1.0.1"), "DTD", hub=Hub("tanganke/dtd"), archives={
                        "dtd-r1.0.1.tar.gz": "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                    }),
        DatasetInfo("places365", 10_000, "http://places2.csail.mit.edu", ("places",)),
        DatasetInfo("sun", 10_000, "SUN of https://github.com/deeplearning-wisc/large_scale_ood", ("SUN",)),
        DatasetInfo("inaturalist", 10_000, "iNaturalist of https://github.com/deeplearning-wisc/large_scale_ood",
                    ("iNaturalist",)),
        DatasetInfo("mnist", 10_000, "https://yann.lecun.com/exdb/mnist", ("mnist_test",), "MNIST",
                    hub=Hub("ylecun/mnist")),
        DatasetInfo("fmnist", 10_000, "https://github.com/zalandoresearch/fashion-mnist", ("fashion-mnist",),
                    "FashionMNIST", hub=Hub("zalando-datasets/fashion_mnist")),
        DatasetInfo("kmnist", 10_000, "http://codh.rois.ac.jp/kmnist", (), "KMNIST", hub=Hub("tanganke/kmnist")),
        DatasetInfo("omniglot", 13_180, "https://github.com/brendenlake/omniglot", (), "Omniglot"),
        DatasetInfo("notmnist", 18_724, "https://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
                    ("notMNIST_small",)),
        DatasetInfo("tiny-imagenet", 10_000, "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    ("tiny_imagenet_val", "tiny-imagenet-200"), hub=Hub("zh-plus/tiny-imagenet", test="valid")),
    )
}  # fmt: skip
"""Benchmark sets by name."""

CIFAR_LIKE: Mapping[str, tuple[str, ...]] = {
    "bird": ("n01855672", "n02002724", "n02056570", "n02058221"),
    "cat": ("n02123045", "n02123394", "n02124075"),
    "dog": ("n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799"),
    "deer": ("n02423022",),
    "frog": ("n01641577", "n01644900"),
    "ship": ("n03447447", "n03662601"),
    "automobile, truck": (
        "n02814533", "n03100240", "n03444034", "n03670208", "n03796401", "n03977966", "n04146614", "n04285008",
        "n04465501", "n04487081",
    ),
}  # fmt: skip
"""Tiny-ImageNet classes that show what CIFAR-10 shows: goose, black stork, king penguin, albatross; tabby, Persian,
Egyptian cat; Chihuahua, Yorkshire terrier, golden retriever, Labrador, German shepherd, poodle; gazelle; bullfrog,
tailed frog; gondola, lifeboat; beach wagon, convertible, go-kart, limousine, moving van, police van, school bus,
sports car, tractor, trolleybus."""


@dataclass(frozen=True)
class Dataset:
    """The images of a set, and what has to be said of them."""

    images: ImageDataset
    labels: NDArray[np.int64] | None
    """Class of each image, from 0; None if they cannot be told."""
    remarks: tuple[str, ...] = ()


def open_dataset(
    name: str,
    root: Path | None,
    *,
    part: Part = "test",
    against: str | None = None,
    places: Mapping[str, Path] | None = None,
    download: bool = False,
) -> Dataset:
    """Find a benchmark set.

    Args:
        name: of `DATASETS`.
        root: folder below which sets lie, each as a folder or a `.tar` of its name or one of its aliases.
        part: `train` or `test`; a folder or tar with such parts is cut down to the one.
        against: the ID set: an OOD set loses the classes that it has in common with it, and says so.
        places: where single sets are, by name, instead of the root.
        download: let torchvision download what it can, and the Hugging Face hub the rest.

    Raises:
        SettingsError: for an unknown name, with what is allowed.
        InputError: if the set is not there, with where to get it; or if an archive has the official one's name and
            not its SHA-256.
        MissingExtraError: if it has to come from the hub and `datasets` is not installed.
    """
    if name not in DATASETS:
        raise SettingsError(f"unknown dataset '{name}'; choose among {', '.join(DATASETS)}")
    info = DATASETS[name]
    path = (places or {}).get(name) or _found(info, root)
    remarks: list[str] = []
    dataset = None
    if path is None and info.torchvision and root is not None:
        dataset = _from_torchvision(info, root, part, download)
    wnids: dict[str, str] | None = None
    if path is not None:
        _check_archive(path, info)
        images = open_images(path)
        chosen = ImageDataset([item for item in images.items if f"/{part}/" in item.name])
        images = chosen if chosen.items else images
        labels = labels_of(images)
        if name == "tiny-imagenet" and against == "cifar10":
            wnids = tiny_imagenet_classes(path, images)
    elif dataset is not None:
        images = open_images(dataset)
        labels = None if not hasattr(dataset, "targets") else np.asarray(dataset.targets, dtype=np.int64)
    elif info.hub is not None and download:
        rows = _from_hub(info.hub, root, part)
        images = open_images(_ImageColumn(rows, info.hub.image))
        labels = np.asarray(rows[info.hub.label], dtype=np.int64) if info.hub.label else None
        remarks.append(f"from the Hugging Face hub, {info.hub.repo}")
        if name == "tiny-imagenet" and against == "cifar10" and labels is not None:
            names = rows.features[info.hub.label].names
            wnids = {item.name: names[label] for item, label in zip(images.items, labels, strict=True)}
    else:
        raise _missing(info, root)
    if wnids is not None:
        images, removed = without_cifar_like(images, wnids)
        labels = None
        remarks.append(f"{removed} images of classes that show what CIFAR-10 shows were removed")
    expected = info.train_images if part == "train" else info.test_images
    if len(images) != expected:
        remarks.append(f"{len(images)} images; the whole set has {expected}")
    return Dataset(images, labels, tuple(remarks))


def labels_of(images: ImageDataset) -> NDArray[np.int64] | None:
    """Classes by the folder that each image lies in; None if all lie in one."""
    folders = [Path(item.name).parent.name for item in images.items]
    names = sorted(set(folders))
    return np.array([names.index(one) for one in folders]) if len(names) > 1 else None


def without_cifar_like(images: ImageDataset, classes: Mapping[str, str]) -> tuple[ImageDataset, int]:
    """Tiny-ImageNet without the classes that show what CIFAR-10 shows, and how many images that took away.

    Args:
        images: of Tiny-ImageNet.
        classes: WordNet id of each image by its file's name.
    """
    like = {wnid for wnids in CIFAR_LIKE.values() for wnid in wnids}
    kept = ImageDataset([item for item in images.items if classes[Path(item.name).name] not in like])
    return kept, len(images) - len(kept)


def tiny_imagenet_classes(path: Path, images: ImageDataset) -> dict[str, str]:
    """WordNet id of each image by its file's name: from `val_annotations.txt`, or the folders' names.

    Raises:
        InputError: if they cannot be told.
    """
    lines = _annotations(path)
    if lines is not None:
        return dict(line.split("\t")[:2] for line in lines)
    parents = {Path(item.name).name: Path(item.name).parts for item in images.items}
    classes = {
        name: next((p for p in parts if p[:1] == "n" and p[1:].isdigit()), "") for name, parts in parents.items()
    }
    if not all(classes.values()):
        raise InputError(f"'{path}' has neither val_annotations.txt nor folders named by WordNet id; get it whole")
    return classes


def _annotations(path: Path) -> list[str] | None:
    if path.is_dir():
        files = sorted(path.rglob("val_annotations.txt"))
        return files[0].read_text().splitlines() if files else None
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith("val_annotations.txt") else None
            if file is not None:
                return file.read().decode().splitlines()
    return None


def _found(info: DatasetInfo, root: Path | None) -> Path | None:
    if root is None:
        return None
    candidates: Iterable[Path] = (root / f"{name}{suffix}" for name in info.names for suffix in ("", ".tar", ".tar.gz"))
    return next((path for path in candidates if path.exists()), None)


def _check_archive(path: Path, info: DatasetInfo) -> None:
    """Raise InputError if a file has the name of an official archive, but not its SHA-256."""
    official = info.archives.get(path.name)
    if official is None or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != official:
        raise InputError(
            f"'{path}' has SHA-256 {found}, the official {path.name} {official}; get it again from {info.where}"
        )


class _ImageColumn:
    """The images of a Hugging Face dataset, as `open_images` takes a torch dataset."""

    def __init__(self, rows: Any, column: str) -> None:
        self._rows, self._column = rows, column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index][self._column]


def _from_hub(hub: Hub, root: Path | None, part: Part) -> Any:
    try:
        import datasets  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    split = hub.test if part == "test" else part
    try:
        return datasets.load_dataset(hub.repo, hub.config, split=split, cache_dir=str(root) if root else None)
    # Network, hub and disk fail in many ways, each with its own exception.
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"cannot get {hub.repo} from the Hugging Face hub: {reason}") from error


def _from_torchvision(info: DatasetInfo, root: Path, part: Part, download: bool) -> Any:
    """Torchvision's dataset; None if it does not have it and the hub may be asked instead."""
    from torchvision import datasets  # noqa: PLC0415 - slow to import

    make: Callable[..., Any] = getattr(datasets, str(info.torchvision))
    options: dict[str, Any] = {"download": download}
    if info.torchvision in ("SVHN", "DTD"):
        options["split"] = part
    elif info.torchvision == "Omniglot":
        options["background"] = part == "train"
    else:
        options["train"] = part == "train"
    try:
        return make(str(root), **options)
    except (RuntimeError, OSError) as error:
        if download and info.hub is not None:
            return None
        raise _missing(info, root) from error


def _missing(info: DatasetInfo, root: Path | None) -> InputError:
    names = " or ".join(f"{name}[.tar]" for name in info.names)
    below = f"below '{root}'" if root else "given"
    sources = [name for name, has in (("torchvision", info.torchvision), ("the Hugging Face hub", info.hub)) if has]
    download = f", or let {' or '.join(sources)} fetch it with --download" if sources else ""
    return InputError(
        f"the dataset '{info.name}' is not {below}; get it from {info.where} and put its images into {names}, or say "
        f"where they are with --set {info.name}=PATH{download}"
    )
