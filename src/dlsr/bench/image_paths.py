"""How fast images are scored in other ways than with dlsr: by hand, with anomalib, with PyOD.

Each function fits to a few of the images, and measures scoring of all of them, from files to scores, with the network
of dlsr's encoder and the same size of images. Each needs a process of its own.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dlsr.bench.parts import available_cores, seconds_of
from dlsr.encoders.encoder import Encoder

ROUNDS = 3
FITTED_TO = 64
BATCH = 32


class ImageFiles(Dataset[torch.Tensor]):
    """Images of a folder, as the usual transforms of torchvision give them to a network."""

    def __init__(self, paths: list[Path], encoder: Encoder) -> None:
        from torchvision import transforms  # noqa: PLC0415 - slow to import

        spec = encoder.spec
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize((spec.size, spec.size), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize([mean / 255 for mean in spec.mean], [std / 255 for std in spec.std]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.load(self.paths[index])

    def load(self, path: Path) -> torch.Tensor:
        """An image as the network takes it, shape `(3, size, size)`."""
        tensor: torch.Tensor = self.transform(Image.open(path).convert("RGB"))
        return tensor


def by_hand(encoder: Encoder, folder: Path) -> float:
    """Images per second with torchvision's transforms, a DataLoader, the same network of timm, eager, and KNN."""
    paths = sorted(folder.iterdir())
    images, network = ImageFiles(paths, encoder), encoder.module().network

    @torch.inference_mode()
    def features(chosen: Dataset[torch.Tensor]) -> torch.Tensor:
        loader = DataLoader(chosen, BATCH, num_workers=available_cores())
        return torch.cat([_pooled(network(batch)) for batch in loader])

    known = features(torch.utils.data.Subset(images, range(min(FITTED_TO, len(paths)))))
    return _rate(lambda: torch.cdist(features(images), known).kthvalue(5).values, len(paths))


def with_anomalib(encoder: Encoder, folder: Path) -> float:
    """Images per second of anomalib's Engine with Dfm on the same network.

    Its weights are random, for anomalib loads others from a hub only; this changes no time.

    Raises:
        ModuleNotFoundError: if anomalib is not installed.
    """
    from anomalib.data import Folder, PredictDataset  # noqa: PLC0415 - an optional extra
    from anomalib.engine import Engine  # noqa: PLC0415
    from anomalib.models import Dfm  # noqa: PLC0415

    size = (encoder.spec.size, encoder.spec.size)
    network: Any = encoder.module().network
    model = Dfm(
        backbone=encoder.spec.network,
        layer=network.feature_info.module_name()[-1],
        pre_trained=False,
        pre_processor=Dfm.configure_pre_processor(size),
        evaluator=False,
        visualizer=False,
    )
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    options: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder.parent / "anomalib",
    }
    few = folder.parent / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[:FITTED_TO]:
        (few / path.name).symlink_to(path)
    known = Folder("few", normal_dir=few, test_split_mode="none", val_split_mode="from_train", num_workers=0)
    engine = Engine(**options)
    engine.fit(model, datamodule=known)
    images = PredictDataset(folder, image_size=size)
    loader = DataLoader(images, BATCH, num_workers=available_cores(), collate_fn=images.collate_fn)
    return _rate(lambda: engine.predict(model, dataloaders=loader), len(images))


def with_pyod(encoder: Encoder, folder: Path) -> float:
    """Images per second of PyOD's EmbeddingOD with KNN on the same network, given as a function on files.

    PyOD's own encoders load weights from a hub only, so the function does what they do: Pillow, then the network.

    Raises:
        ModuleNotFoundError: if PyOD is not installed.
    """
    from pyod.models.embedding import EmbeddingOD  # noqa: PLC0415 - an optional extra

    paths = sorted(folder.iterdir())
    images, network = ImageFiles(paths, encoder), encoder.module().network

    @torch.inference_mode()
    def embed(chosen: list[Path]) -> NDArray[np.float32]:
        found = []
        for begin in range(0, len(chosen), BATCH):
            batch = torch.stack([images.load(path) for path in chosen[begin : begin + BATCH]])
            found.append(_pooled(network(batch)).numpy())
        return np.concatenate(found)

    detector: Any = EmbeddingOD(embed, detector="KNN")
    detector.fit(paths[:FITTED_TO])
    return _rate(lambda: detector.decision_function(paths), len(paths))


OTHERS: Mapping[str, Callable[[Encoder, Path], float]] = {
    "by hand: torchvision, DataLoader, timm": by_hand,
    "anomalib: Engine, Dfm": with_anomalib,
    "PyOD: EmbeddingOD, KNN": with_pyod,
}
"""Other ways, by what they consist of."""


def _pooled(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.mean(dim=(2, 3)) for one in maps], dim=1)


def _rate(score: Callable[[], object], images: int) -> float:
    """Images per second; the first round warms up."""
    return images / float(np.median([seconds_of(score) for _ in range(1 + ROUNDS)][1:]))
