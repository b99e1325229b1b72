import pytest

from baselines.tiny import TINY
from dlsr.baselines import make_detector
from dlsr.images.sources import open_images


@pytest.fixture(scope="session")
def training(image_folder):
    """48 images, of two classes."""
    return open_images(image_folder).subset(range(36, 84))


@pytest.fixture(scope="session")
def fitted(training):
    """Each baseline, fitted to the same images once."""
    cache = {}

    def fit(name):
        if name not in cache:
            labels = [int("one" in item.name) for item in training.items]
            cache[name] = make_detector(name, **TINY[name]).fit(training, labels)
        return cache[name]

    return fit
