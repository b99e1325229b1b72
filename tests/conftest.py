import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; threads of one would wait for those of the other. Read when NumPy is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from dlsr import Detector
from shared import patches


def pytest_collection_modifyitems(items):
    """Files with most slow tests first, so that the workers of pytest-xdist end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for all tests, so that each engine is converted once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLSR_CACHE", str(folder))
        yield folder


@pytest.fixture
def own_cache(monkeypatch, tmp_path_factory):
    """An empty cache, for tests of the cache itself."""
    folder = tmp_path_factory.mktemp("own-cache")
    monkeypatch.setenv("DLSR_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Random numbers in a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photographs():
    """Real photographs: a Chinese temple and a flower."""
    return [Image.fromarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, photographs) -> Path:
    """120 real patches of the temple as PNG files, in two subfolders."""
    folder = tmp_path_factory.mktemp("images")
    for i, patch in enumerate(patches(photographs[0], 120)):
        path = folder / ("one" if i % 2 else "two") / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(patch).save(path)
    return folder


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory, photographs) -> Path:
    """40 real patches of the flower."""
    folder = tmp_path_factory.mktemp("odd")
    for i, patch in enumerate(patches(photographs[1], 40)):
        Image.fromarray(patch).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def features():
    """Correlated features of three layers, and others that break the correlation."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((6, 24))
    inside = random.standard_normal((600, 6)) @ mixing + 0.1 * random.standard_normal((600, 24))
    outside = random.permuted(inside[:200], axis=1)
    return inside.astype(np.float32), outside.astype(np.float32)


@pytest.fixture(scope="session")
def small_encoder():
    """Settings of a detector whose encoder is tiny and untrained."""
    return {"encoder": "test_resnet", "weights": "random", "backend": "torch"}


@pytest.fixture(scope="session")
def model(tmp_path_factory, image_folder, small_encoder) -> Path:
    """A model directory with the default score, fitted to `image_folder`."""
    folder = tmp_path_factory.mktemp("models") / "model"
    # Patches that overlap count as near copies, which new patches may be, too.
    Detector(**small_encoder, group_by="none").fit(image_folder).save(folder)
    return folder


@pytest.fixture(scope="session")
def detector_with_maps(image_folder, small_encoder):
    """Shows where images deviate, by a score whose gradient is converted in seconds."""
    return Detector(**small_encoder, score="mahalanobis", group_by="none", maps=True).fit(image_folder)


@pytest.fixture(scope="session")
def model_with_maps(detector_with_maps, tmp_path_factory) -> Path:
    """The model directory of `detector_with_maps`."""
    folder = tmp_path_factory.mktemp("models") / "with-maps"
    detector_with_maps.save(folder)
    return folder


@pytest.fixture(scope="session")
def explaining_model(tmp_path_factory, photographs, small_encoder) -> Path:
    """A model directory fitted to so many patches of the temple that it can tell what is unusual."""
    folder = tmp_path_factory.mktemp("explaining")
    images = folder / "images"
    images.mkdir()
    for i, patch in enumerate(patches(photographs[0], 330, seed=1)):
        Image.fromarray(patch).save(images / f"{i:03}.png")
    Detector(**small_encoder, group_by="none", thumbnails=3).fit(images).save(folder / "model")
    return folder / "model"


@pytest.fixture
def refused_folder(tmp_path, photographs) -> Path:
    """10 patches of the temple; 20 images of noise and 15 red ones, which are larger; and a file that is broken."""
    folder, random = tmp_path / "new <b>", np.random.default_rng(0)
    for name, count in (("temple", 10), ("noise", 20), ("red", 15)):
        (folder / name).mkdir(parents=True)
        for i, patch in enumerate(patches(photographs[0], count, seed=2)):
            noise = 255 * random.integers(0, 2, (200, 200, 3), dtype=np.uint8)
            red = np.array([255, 0, 0], np.uint8) - random.integers(0, 20, (200, 200, 1), dtype=np.uint8) * (1, 0, 0)
            pixels = {"temple": patch, "noise": noise, "red": red.astype(np.uint8)}[name]
            Image.fromarray(pixels).save(folder / name / f"{name}-{i:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@dataclass(frozen=True)
class Finished:
    """A command that has finished."""

    status: int
    out: str
    err: str

    @property
    def error(self):
        """The single line of an error that the user can fix."""
        assert self.status == 2, self.err
        assert "Traceback" not in self.err
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        return line


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process, which is faster than in its own."""
    from dlsr.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlsr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return Finished(caught.value.code or 0, *capsys.readouterr())

    return call
