"""The encoder in bfloat16, on processors that multiply in it, and in 8-bit integers."""

import numpy as np
import pytest

from dlsr import Detector, Encoder, FittedDetector, MissingExtraError, SettingsError, encoder_spec
from dlsr.export import export
from dlsr.runtime import openvino_engine, quantisation
from dlsr.runtime.openvino_engine import multiplies_in_bfloat16

SMALL = {"encoder": "test_resnet", "weights": "random"}
needs_bfloat16 = pytest.mark.skipif(not multiplies_in_bfloat16(), reason="this processor does not multiply in bfloat16")


@pytest.mark.slow
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
    with pytest.raises(SettingsError, match="unknown precision 'int4'; choose one of float32, bfloat16, int8"):
        encoder_spec("resnet50", precision="int4")


@pytest.fixture(scope="module")
def in_8_bits(image_folder):
    return Detector(**SMALL, precision="int8", score="knn", group_by="none").fit(image_folder)


def test_8_bits_give_features_near_those_of_float32(in_8_bits, image_folder):
    encoder = in_8_bits.extractor_.encoder
    full = Encoder(encoder.spec.model_copy(update={"precision": "float32"}))
    pixels = in_8_bits.extractor_.pixels(image_folder, 20)
    exact, rounded = full.encode(pixels), encoder.encode(pixels)
    between = np.abs(exact - exact.mean(axis=0)).mean()
    assert 1e-3 < np.abs(exact - rounded).mean() < 0.3 * between
    alone = np.concatenate([encoder.encode(pixels[i : i + 1]) for i in range(len(pixels))])
    np.testing.assert_allclose(alone, rounded, atol=1e-3)
    assert encoder.key != full.key


@pytest.mark.slow
def test_features_in_8_bits_are_kept_apart_by_the_images_of_their_ranges(in_8_bits, image_folder, odd_folder):
    encoder = in_8_bits.extractor_.encoder
    extractor = Detector(**SMALL, precision="int8").prepare_extractor()
    again, other = (extractor.with_ranges(folder, 0).encoder for folder in (image_folder, odd_folder))
    assert again.key == encoder.key
    assert other.key != encoder.key


def test_a_model_in_8_bits_holds_its_encoder(in_8_bits, image_folder, odd_folder, tmp_path):
    in_8_bits.save(tmp_path / "model")
    for kind in (Detector, FittedDetector):
        loaded = kind.load(tmp_path / "model")
        np.testing.assert_allclose(loaded.score_samples(odd_folder), in_8_bits.score_samples(odd_folder), rtol=1e-4)
        with pytest.raises(SettingsError, match="does not run in int8; use --backend openvino"):
            kind.load(tmp_path / "model", backend="onnxruntime").detect(odd_folder)
    with pytest.raises(SettingsError, match="cannot be saved without its graphs"):
        in_8_bits.save(tmp_path / "bare", graphs=False)
    with pytest.raises(SettingsError, match="fit it with precision float32 to export it"):
        export(Detector.load(tmp_path / "model"), tmp_path / "out", "openvino")


def test_fitting_again_quantises_the_exact_encoder(in_8_bits, image_folder, tmp_path):
    graph = in_8_bits.extractor_.encoder.onnx()
    in_8_bits.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    loaded.detect(image_folder)
    loaded.fit(image_folder)
    assert loaded.extractor_.encoder.onnx() == graph


def test_8_bits_need_the_images_of_a_fit():
    with pytest.raises(SettingsError, match="made by a fit on this machine, from its images"):
        Encoder(encoder_spec("test_resnet", weights="random", precision="int8"))


def test_8_bits_without_what_they_need_say_what_to_install(monkeypatch, image_folder):
    real = quantisation.find_spec
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None if name == "nncf" else real(name))
    with pytest.raises(MissingExtraError, match=r"nncf is not installed; .*dlsr\[quantise\]"):
        Detector(**SMALL, precision="int8").fit(image_folder)
