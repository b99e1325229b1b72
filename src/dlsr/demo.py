"""A demonstration on real images that come with scikit-learn and scikit-image. Downloads nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images

from dlsr.detector import Detector
from dlsr.encoding.pipeline import Progress
from dlsr.errors import MissingExtraError
from dlsr.evaluation import Evaluation, evaluate
from dlsr.images.sources import open_images
from dlsr.runtime.backends import Backend
from dlsr.training.loop import OnEpoch

Pixels = NDArray[np.uint8]

UNSEEN_DIGITS = (8, 9)
TEST_SHARE = 4
PATCH = 8
PATCHES = 150


def demo_datasets(seed: int = 0) -> tuple[Pixels, Pixels, dict[str, Pixels]]:
    """Training images, ID test images, and OOD datasets by name, each uint8 of shape `(N, 8, 8)`.

    All are 8x8 and grey, so that size and colour give nothing away. ID is handwritten digits 0 to 7. The hardest OOD
    dataset is digits 8 and 9, which are not in the training images.

    Raises:
        MissingExtraError: without scikit-image.
    """
    try:
        import skimage.data  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("scikit-image", "demo") from None
    data: Any = skimage.data
    random = np.random.default_rng(seed)
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    unseen = np.isin(digits.target, UNSEEN_DIGITS)
    known = random.permutation(images[~unseen])
    test, train = known[: len(known) // TEST_SHARE], known[len(known) // TEST_SHARE :]
    photographs = [image.mean(axis=2).astype(np.uint8) for image in load_sample_images().images]
    photographs += [data.astronaut().mean(axis=2).astype(np.uint8), data.camera()]
    textures = [data.brick(), data.grass(), data.gravel()]
    return (
        train,
        test,
        {
            "unseen digits": images[unseen],
            "upside-down digits": test[:, ::-1],
            "printed text": _patches([data.page(), data.text()], 16, random),
            "textures": _patches(textures, 64, random),
            "photographs": _patches(photographs, 64, random),
        },
    )


def _patches(images: list[Pixels], side: int, random: np.random.Generator) -> Pixels:
    """Random square patches of `side` pixels, averaged down to 8x8."""
    patches = []
    for _ in range(PATCHES):
        image = images[random.integers(len(images))]
        top, left = (random.integers(n - side + 1) for n in image.shape)
        patch = image[top : top + side, left : left + side]
        step = side // PATCH
        patches.append(patch.reshape(PATCH, step, PATCH, step).mean(axis=(1, 3)).astype(np.uint8))
    return np.stack(patches)


def run_demo(
    folder: Path,
    device: str = "auto",
    backend: Backend = "auto",
    progress: Callable[[str, int], Progress] | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[Detector, Evaluation]:
    """Fit to digits, save the model to `folder / "model"`, load it and evaluate it.

    Args:
        folder: to write the model to.
        device: as for `Detector`.
        backend: as for `Detector`.
        progress: makes a progress callback for a dataset's name and size.
        on_epoch: callback after each epoch of training.

    Raises:
        MissingExtraError: without scikit-image.
        OutputError: if the model cannot be written.
    """
    train, test, ood = demo_datasets()
    fitted = Detector(device=device, backend=backend).fit(
        open_images(train), progress=progress("fitting", len(train)) if progress else None, on_epoch=on_epoch
    )
    fitted.save(folder / "model")
    detector = Detector.load(folder / "model", device=device, backend=backend)
    return detector, evaluate(detector, test, ood, progress=progress)
