import sys

import numpy as np
import pytest

from dlsr import Detector, MissingExtraError, demo


def test_demo_datasets_are_real_images_alike_in_size_and_colour():
    train, test, ood = demo.demo_datasets()
    assert len(ood) == 5
    for images in (train, test, *ood.values()):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (8, 8)
        assert len(images) >= 150
        assert images.std() > 10
    shared = {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert len(shared) < 5


def test_demo_needs_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[demo\]"):
        demo.demo_datasets()


def test_demo_fits_saves_and_evaluates(run, tmp_path, monkeypatch):
    """With a small encoder and few images; `make demo` runs the demo as it is."""

    class SmallDetector:
        load = Detector.load

        def __new__(cls, **options):
            return Detector("test_resnet", weights="random", **options)

    train, test, ood = demo.demo_datasets()
    few = train[:100], test[:20], {name: images[:20] for name, images in ood.items()}
    monkeypatch.setattr(demo, "demo_datasets", lambda: few)
    monkeypatch.setattr(demo, "Detector", SmallDetector)
    done = run("demo", "-o", tmp_path, "--backend", "torch")
    assert done.status == 0
    assert "unseen" in done.out
    assert "histogram.png" in done.err
    assert (tmp_path / "model" / "model.json").exists()
