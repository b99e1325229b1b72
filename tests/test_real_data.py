"""Measured on the real datasets; set DLSR_DATA to the folder with their tars."""

import os
from pathlib import Path

import numpy as np
import pytest

from dlsr import Detector, evaluate, open_images
from dlsr.images.sources import ImageDataset

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("DLSR_DATA" not in os.environ, reason="set DLSR_DATA to the folder with the real datasets"),
]


@pytest.fixture(scope="module")
def cifar():
    everything = open_images(Path(os.environ["DLSR_DATA"]) / "cifar10.tar")

    def part(name, count):
        return ImageDataset([item for item in everything.items if f"/{name}/" in item.name]).sample(count)

    return part("train", 1500), part("test", 1000)


def test_default_detects_real_images(cifar, tmp_path):
    train, test = cifar
    data = Path(os.environ["DLSR_DATA"])
    ood = {name: open_images(data / f"{name}.tar").sample(200) for name in ("svhn_crops", "dtd_5classes", "mnist_test")}
    aurocs = {}
    for score in ("local", "mahalanobis"):
        detector = Detector(score=score, store=tmp_path).fit(train)
        report = evaluate(detector, test, ood, protocol="matched").report
        aurocs[score] = report.average_auroc
        assert abs(report.false_alarms - 0.05) < 0.05
    assert aurocs["local"] > aurocs["mahalanobis"]
    assert aurocs["local"] > 0.9


def test_same_score_alone_in_a_batch_and_shuffled(cifar):
    train, test = cifar
    for backend in ("torch", "auto"):
        detector = Detector(backend=backend).fit(train.sample(200))
        images = test.sample(64)
        together = detector.score_samples(images)
        order = np.random.default_rng(0).permutation(64)
        np.testing.assert_allclose(detector.score_samples(images.subset(order)), together[order], atol=1e-5)
        alone = [detector.score_samples(images.subset([i]))[0] for i in range(8)]
        np.testing.assert_allclose(alone, together[:8], atol=1e-5)


def test_backends_agree_on_real_images(cifar, tmp_path):
    train, test = cifar
    Detector(backend="torch").fit(train).save(tmp_path)
    plain = Detector.load(tmp_path, backend="torch")
    scores = plain.score_samples(test)
    for backend in ("openvino", "onnxruntime", "compile"):
        other = Detector.load(tmp_path, backend=backend)
        difference = np.abs(other.score_samples(test) - scores)
        assert difference.max() < 1e-3
        near = np.abs(scores - plain.threshold_) <= difference
        np.testing.assert_array_equal(other.predict(test)[~near], plain.predict(test)[~near])
