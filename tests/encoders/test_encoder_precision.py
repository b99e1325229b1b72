"""The encoder in bfloat16, on processors that multiply in it."""

import numpy as np
import pytest

from dlsr import Detector, Encoder, SettingsError, encoder_spec
from dlsr.export import export
from dlsr.runtime import openvino_engine
from dlsr.runtime.openvino_engine import multiplies_in_bfloat16

SMALL = {"encoder": "test_resnet", "weights": "random"}
needs_bfloat16 = pytest.mark.skipif(not multiplies_in_bfloat16(), reason="this processor does not multiply in bfloat16")


@needs_bfloat16
def test_bfloat16_gives_nearly_the_same_features_whatever_the_batch_size():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    full, half = (
        Encoder(encoder_spec("efficientnet_lite0", precision=precision)) for precision in ("float32", "bfloat16")
    )
    assert full.key != half.key
    difference = np.abs(full.encode(pixels) - half.encode(pixels))
    assert 1e-3 < difference.mean() < 0.1
    alone = np.concatenate([half.encode(pixels[i : i + 1]) for i in range(len(pixels))])
    np.testing.assert_allclose(alone, half.encode(pixels), atol=1e-4)


@needs_bfloat16
def test_a_model_keeps_the_precision_it_was_fitted_with(image_folder, tmp_path):
    detector = Detector(**SMALL, precision="bfloat16", score="knn", group_by="none").fit(image_folder)
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    assert loaded.extractor_.spec.precision == "bfloat16"
    assert loaded.extractor_.encoder.backend == "openvino"
    np.testing.assert_allclose(loaded.score_samples(image_folder), detector.score_samples(image_folder), rtol=1e-4)
    with pytest.raises(SettingsError, match="fit it with precision float32 to export it"):
        export(loaded, tmp_path / "out", "openvino")
    with pytest.raises(SettingsError, match="does not run in bfloat16"):
        Detector.load(tmp_path / "model", backend="torch").detect(image_folder)


def test_a_processor_without_it_is_refused_instead_of_using_float32(monkeypatch, image_folder):
    monkeypatch.setattr(openvino_engine, "multiplies_in_bfloat16", lambda: False)
    with pytest.raises(SettingsError, match="does not multiply in bfloat16; fit with --precision float32"):
        Detector(**SMALL, precision="bfloat16").fit(image_folder)


def test_unknown_precisions_are_refused():
    with pytest.raises(SettingsError, match="unknown precision 'int4'; choose one of float32, bfloat16"):
        encoder_spec("resnet50", precision="int4")
