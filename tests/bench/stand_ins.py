"""Small stand-ins for the paper's datasets, each laid out as its authors, or those who copy it, pack it."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared import patches

Pixels = Iterator[NDArray[np.uint8]]
TRAIN, TEST = 90, 10
"""Images of each part."""
WNIDS = ("n01443537", "n01629819", "n02123045")
"""Classes of ImageNet, the last of which shows what CIFAR-10 shows, too."""


def write_all(root: Path, photographs: list[Image.Image]) -> None:
    """Write all stand-ins below `root`: patches of a photograph as ID, of another one with noise as OOD images."""
    temple, flower = (np.asarray(photograph) for photograph in photographs)

    def inside(seed: int, side: int = 32) -> Pixels:
        return iter(patches(Image.fromarray(temple), 3 * TRAIN, side, seed))

    def outside(seed: int, side: int = 32) -> Pixels:
        random = np.random.default_rng(seed)
        noise = random.integers(0, 20 * seed, (4 * TEST, side, side, 3))
        return iter(np.clip(patches(Image.fromarray(flower), 4 * TEST, side, seed) + noise, 0, 255).astype(np.uint8))

    for seed, name in enumerate(("cifar10", "cifar100")):
        pixels = inside(seed)
        _write(root / name / "train" / "apple", "png", pixels, TRAIN // 2)
        _write(root / name / "train" / "boat", "png", pixels, TRAIN // 2)
        _write(root / name / "test" / "apple", "png", pixels, TEST)
    _celeba(root / "celeba", inside(2, 40))
    _imagenet(root / "imagenet100", inside(3, 48))
    _tiny_imagenet(root / "tiny-imagenet-200", outside(1, 64))
    _write(root / "LSUN" / "test", "png", outside(2), TEST)
    _write(root / "LSUN_resize" / "LSUN_resize", "png", outside(3), TEST)
    _write(root / "iSUN" / "iSUN_patches", "jpeg", outside(4), TEST)
    _write(root / "dtd" / "images" / "banded", "jpg", outside(5, 60), TEST)
    _write(root / "Places" / "images", "jpg", outside(6, 60), TEST)
    _write(root / "SUN" / "images", "jpg", outside(7, 60), TEST)
    _write(root / "iNaturalist" / "images", "jpg", outside(8, 60), TEST)
    for seed, name in enumerate(("mnist/test/7", "fmnist/test/0", "kmnist/test/0", "notMNIST_small/A"), start=10):
        _write(root / name, "png", _grey(outside(seed, 28)), TEST)
    _write(root / "omniglot" / "images_evaluation" / "Angelic" / "character01", "png", _grey(outside(14, 60)), TEST)
    pixels = outside(9)
    for part in ("train", "test"):
        _write(root / "unpacked" / part / "7", "png", pixels, TEST)
    with tarfile.open(root / "svhn.tar", "w") as tar:
        tar.add(root / "unpacked", "svhn")


def _grey(pixels: Pixels) -> Pixels:
    return (colour[..., 0] for colour in pixels)


def _write(folder: Path, suffix: str, pixels: Pixels, count: int, names: Callable[[int], str] = "{:06}".format) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(next(pixels)).save(folder / f"{names(i)}.{suffix}")


def _celeba(folder: Path, pixels: Pixels) -> None:
    _write(folder / "img_align_celeba", "jpg", pixels, TRAIN + 2 * TEST)
    parts = [0] * TRAIN + [1] * TEST + [2] * TEST  # training, validation, test
    lines = [f"{i:06}.jpg {part}" for i, part in enumerate(parts)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def _imagenet(folder: Path, pixels: Pixels) -> None:
    for wnid in WNIDS:
        _write(folder / "train" / wnid, "JPEG", pixels, TRAIN // len(WNIDS), f"{wnid}_{{}}".format)
    _write(folder / "val", "JPEG", pixels, TEST, "ILSVRC2012_val_{:08}".format)


def _tiny_imagenet(folder: Path, pixels: Pixels) -> None:
    for part in ("val", "test"):
        _write(folder / part / "images", "JPEG", pixels, TEST + 2, f"{part}_{{}}".format)
    _write(folder / "train" / WNIDS[0] / "images", "JPEG", pixels, TEST, f"{WNIDS[0]}_{{}}".format)
    classes = [WNIDS[i % 2] for i in range(TEST)] + [WNIDS[2]] * 2
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62" for i, wnid in enumerate(classes)]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
