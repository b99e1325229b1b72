"""The paper's benchmark datasets by name: from a folder or tar, torchvision or the Hugging Face hub."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import InputError, MissingExtraError, SettingsError, one_line
from dlsr.images.names import in_utf8
from dlsr.images.sources import ImageDataset, open_images

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face hub, read with the package `datasets`."""

    repo: str
    config: str | None = None
    test: str = "test"
    """Name of the test split."""
    image: str = "image"
    """Column of the images."""
    label: str | None = "label"
    """Column of the classes; None if there is none."""


@dataclass(frozen=True)
class DatasetInfo:
    """A benchmark dataset, and where to find it."""

    name: str
    test_images: int
    """Images of the whole test split, as counted by the paper or the dataset's authors."""
    where: str
    """Where to download it."""
    aliases: tuple[str, ...] = ()
    """Other names of its folder or tar."""
    torchvision: str | None = None
    """Class of torchvision that reads it and can download it."""
    train_images: int = 0
    """Images of the training split, for datasets that can be ID."""
    hub: Hub | None = None
    """Its place on the Hugging Face hub."""
    test_folders: tuple[str, ...] = ("test", "val")
    """Possible names of the folder with the test images, the first that is there."""
    partition: str | None = None
    """File whose lines `FILE NUMBER` tell training images (0) from test images (2), if no folders do."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """Published SHA-256 of the official archives, by file name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Possible names of its folder or tar, in the order of search."""
        return (self.name, *self.aliases)


DATASETS: Mapping[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("cifar10", 10_000, "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar10_jpeg", "cifar-10"),
                    "CIFAR10", 50_000, Hub("uoft-cs/cifar10", image="img")),
        DatasetInfo("cifar100", 10_000, "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar-100",), "CIFAR100",
                    50_000, Hub("uoft-cs/cifar100", image="img", label="fine_label")),
        DatasetInfo("celeba", 19_962, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (aligned images)", (),
                    None, 162_770, Hub("flwrlabs/celeba", label=None), partition="list_eval_partition.txt"),
        DatasetInfo("imagenet100", 5_000, "100 classes of https://image-net.org (the paper does not say which)",
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
        DatasetInfo("places365", 10_000, "http://places2.csail.mit.edu", ("places", "Places")),
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
                    ("tiny_imagenet_val", "tiny-imagenet-200"), hub=Hub("zh-plus/tiny-imagenet", test="valid"),
                    test_folders=("val",)),
    )
}  # fmt: skip
"""Benchmark datasets by name."""

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
CIFAR_LIKE_IDS = tuple(wnid for wnids in CIFAR_LIKE.values() for wnid in wnids)
"""The same as one list."""


@dataclass(frozen=True)
class Dataset:
    """The images of a dataset, with remarks for the report."""

    images: ImageDataset
    labels: NDArray[np.int64] | None
    """Class of each image, from 0; None if unknown."""
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
    """Find a benchmark dataset.

    Args:
        name: a name of `DATASETS`.
        root: folder with the datasets, each a folder or a `.tar` called by its name or one of its aliases.
        part: `train` or `test`; a folder or tar without these parts is taken for the test images.
        against: name of the ID dataset. Classes that an OOD dataset shares with it are removed, with a remark.
        places: folders or tars of single datasets, by name, used instead of `root`.
        download: let torchvision, or else the Hugging Face hub, download the dataset.

    Raises:
        SettingsError: for an unknown name, with the names that exist.
        InputError: if the dataset or this part of it is not found, with where to get it; or if an archive has the name
            of the official one but another SHA-256.
        MissingExtraError: if it has to come from the hub and `datasets` is not installed.
    """
    if name not in DATASETS:
        raise SettingsError(f"unknown dataset '{name}'; choose one of {', '.join(DATASETS)}")
    info = DATASETS[name]
    path = (places or {}).get(name) or _found(info, root)
    remarks: list[str] = []
    dataset = None
    if path is None and info.torchvision and root is not None:
        dataset = _from_torchvision(info, root, part, download)
    wnids: dict[str, str] | None = None
    if path is not None:
        _check_archive(path, info)
        images = _part_of(info, path, part)
        labels = labels_of(images)
        if name == "tiny-imagenet" and against == "cifar10":
            wnids = tiny_imagenet_classes(path, images)
    elif dataset is not None:
        images = open_images(dataset)
        labels = None if not hasattr(dataset, "targets") else np.asarray(dataset.targets, dtype=np.int64)
    elif info.hub is not None and download:
        table = _from_hub(info.hub, root, part)
        images = open_images(_ImageColumn(table, info.hub.image))
        labels = np.asarray(table[info.hub.label], dtype=np.int64) if info.hub.label else None
        remarks.append(f"from the Hugging Face hub, {info.hub.repo}")
        if name == "tiny-imagenet" and against == "cifar10" and labels is not None:
            names = table.features[info.hub.label].names
            wnids = {item.name: names[label] for item, label in zip(images.items, labels, strict=True)}
    else:
        raise _missing(info, root)
    if wnids is not None:
        images, removed = without_cifar_like(images, wnids)
        labels = None
        remarks.append(f"{removed} images of classes that show what CIFAR-10 shows were removed")
    expected = info.train_images if part == "train" else info.test_images
    if len(images) != expected:
        remarks.append(f"{len(images)} images; the whole dataset has {expected}")
    return Dataset(images, labels, tuple(remarks))


def _part_of(info: DatasetInfo, path: Path, part: Part) -> ImageDataset:
    """The images of one part in a folder or tar. Raises InputError if they cannot be told from those of the other."""
    images = open_images(path)
    text = _text_below(path, info.partition) if info.partition else None
    if text is not None:
        numbers = dict(line.split()[:2] for line in text.splitlines() if line)
        wanted = "0" if part == "train" else "2"
        return ImageDataset([item for item in images.items if numbers.get(Path(item.name).name) == wanted])

    def below(folder: str) -> ImageDataset:
        above = in_utf8(str(path))  # which may be in a folder called `test`
        return ImageDataset([item for item in images.items if f"/{folder}/" in f"/{item.name.removeprefix(above)}"])

    folders = ("train",) if part == "train" else info.test_folders
    for folder in folders:
        if (chosen := below(folder)).items:
            return chosen
    if part == "train" or below("train").items:
        named = " or ".join(f"'{folder}'" for folder in folders)
        listed = f", or {info.partition} beside them" if info.partition else ""
        raise InputError(f"'{path}' has no folder {named}; put its {part} images there{listed}")
    return images


def labels_of(images: ImageDataset) -> NDArray[np.int64] | None:
    """Classes from the folder of each image; None if all images are in one folder."""
    folders = [Path(item.name).parent.name for item in images.items]
    names = sorted(set(folders))
    return np.array([names.index(folder) for folder in folders]) if len(names) > 1 else None


def without_cifar_like(images: ImageDataset, classes: Mapping[str, str]) -> tuple[ImageDataset, int]:
    """Tiny-ImageNet without the classes that show what CIFAR-10 shows, and the number of images removed.

    Args:
        images: images of Tiny-ImageNet.
        classes: WordNet ids by the file names of the images. Images without one stay.
    """
    kept = ImageDataset([item for item in images.items if classes.get(Path(item.name).name) not in CIFAR_LIKE_IDS])
    return kept, len(images) - len(kept)


def tiny_imagenet_classes(path: Path, images: ImageDataset) -> dict[str, str]:
    """WordNet ids by the file names of the images, from `val_annotations.txt` or the names of folders.

    Raises:
        InputError: if neither gives them.
    """
    annotated = annotated_classes(path, "val_annotations.txt")
    if annotated is not None:
        return annotated
    parents = {Path(item.name).name: Path(item.name).parts for item in images.items}
    classes = {
        name: next((p for p in parts if p[:1] == "n" and p[1:].isdigit()), "") for name, parts in parents.items()
    }
    if not all(classes.values()):
        raise InputError(f"'{path}' has neither val_annotations.txt nor folders named by WordNet id; get it whole")
    return classes


def annotated_classes(path: Path, name: str) -> dict[str, str] | None:
    """Classes by the file names of the images, from lines `FILE<tab>CLASS<tab>..`; None without such a file.

    Args:
        path: a folder or tar.
        name: of the file with these lines, anywhere in it.

    Raises:
        InputError: if a line of the file has no tab.
    """
    text = _text_below(path, name)
    if text is None:
        return None
    rows = [line.split("\t")[:2] for line in text.splitlines() if line]
    if any(len(row) < 2 for row in rows):
        raise InputError(f"'{name}' in '{path}' has lines without a tab; give a file with lines of FILE<tab>CLASS")
    return dict(rows)


def _text_below(path: Path, name: str) -> str | None:
    try:
        if path.is_dir():
            files = sorted(path.rglob(name))
            return files[0].read_text(encoding="utf-8") if files else None
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if Path(member.name).name == name else None
                if file is not None:
                    return file.read().decode()
        return None
    except (OSError, ValueError, NotImplementedError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"cannot read '{name}' in '{path}' ({one_line(error)}); give a folder or tar with a UTF-8 file of this name"
        ) from error


def _found(info: DatasetInfo, root: Path | None) -> Path | None:
    if root is None:
        return None
    candidates: Iterable[Path] = (root / f"{name}{suffix}" for name in info.names for suffix in ("", ".tar", ".tar.gz"))
    return next((path for path in candidates if path.exists()), None)


def _check_archive(path: Path, info: DatasetInfo) -> None:
    """Raise InputError if a file has the name of an official archive but another SHA-256."""
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
    """The image column of a Hugging Face dataset, as a dataset of torch."""

    def __init__(self, table: Any, column: str) -> None:
        self._table, self._column = table, column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        return self._table[index][self._column]


def _from_hub(hub: Hub, root: Path | None, part: Part) -> Any:
    try:
        import datasets  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    split = hub.test if part == "test" else part
    try:
        return datasets.load_dataset(hub.repo, hub.config, split=split, cache_dir=str(root) if root else None)
    # Network, hub and disk raise many kinds of exceptions.
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"cannot get {hub.repo} from the Hugging Face hub: {reason}") from error


def _from_torchvision(info: DatasetInfo, root: Path, part: Part, download: bool) -> Any:
    """The dataset of torchvision; None if torchvision fails and the hub can be tried instead."""
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
    download = f", or download it from {' or '.join(sources)} with --download" if sources else ""
    return InputError(
        f"the dataset '{info.name}' is not {below}; get it from {info.where} and put its images into {names}, or give "
        f"their place with --dataset {info.name}=PATH{download}"
    )
