import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, FittedDetector, SettingsError, UnreadableImagesWarning
from dlsr.anomaly_maps import AnomalyMap, excess
from dlsr.errors import NoSuchImageError
from dlsr.images.decode import decode
from dlsr.images.sources import ImageDataset, ImageItem, open_images
from dlsr.model import FittedModel
from dlsr.results import Results
from shared import patches


@pytest.mark.slow
def test_maps_point_to_pasted_patches_and_ordinary_images_stay_dark(photographs):
    temple, flower = patches(photographs[0], 300, side=96), patches(photographs[1], 40, side=96, seed=1)
    training, held_out = list(temple[:260]), temple[260:]
    detector = Detector(maps=True, group_by="none").fit(training)
    random = np.random.default_rng(0)
    pasted, corners = [], random.integers(0, 97 - 36, size=(len(held_out), 2))
    for image, other, (top, left) in zip(held_out, flower, corners, strict=True):
        changed = image.copy()
        changed[top : top + 36, left : left + 36] = np.asarray(Image.fromarray(other).resize((36, 36)))
        pasted.append(changed)
    hits = 0
    for found, (top, left) in zip(detector.anomaly_maps(pasted), corners, strict=True):
        y, x = (np.array(np.unravel_index(found.values.argmax(), found.values.shape)) + 0.5) / 28 * 96
        hits += bool(top <= y < top + 36 and left <= x < left + 36)
    chance, centre = 36**2 / 96**2, np.mean((corners <= 48).all(axis=1) & (corners > 12).all(axis=1))
    assert hits / len(pasted) > max(chance, centre) + 0.2
    brightest = [found.values.max() for found in detector.anomaly_maps(list(held_out))]
    assert np.mean(np.array(brightest) > 1) < 0.2


def test_maps_of_a_saved_model_are_those_of_its_fit(detector_with_maps, model_with_maps, odd_folder):
    before = [found.values for found in detector_with_maps.anomaly_maps(odd_folder)]
    loaded = FittedDetector.load(model_with_maps, backend="onnxruntime")
    after = [found.values for found in loaded.anomaly_maps(odd_folder)]
    np.testing.assert_allclose(after, before, rtol=1e-2, atol=1e-2)
    again = Detector.load(model_with_maps, backend="torch")
    np.testing.assert_allclose([one.values for one in again.anomaly_maps(odd_folder)], before, rtol=1e-2, atol=1e-2)


def test_unreadable_images_keep_their_place(detector_with_maps, odd_folder):
    good = sorted(odd_folder.iterdir())[0]
    first, second, third = detector_with_maps.anomaly_maps([good, b"no image", good])
    assert (first.error, second.values, second.image) == (None, None, None)
    assert "not an image" in second.error
    np.testing.assert_array_equal(first.values, third.values)


def test_images_are_encoded_once_for_results_and_maps(model_with_maps, odd_folder, tmp_path, monkeypatch):
    detector = FittedDetector.load(model_with_maps, store=tmp_path / "store")
    images = [*sorted(odd_folder.iterdir())[:5], b"no image"]
    parts = list(detector.detect_with_maps(images))
    together = Results.joined([results for results, _ in parts])
    maps = [found for _, of_part in parts for found in of_part]
    assert [found.path for found in maps] == together.paths
    assert [found.error for found in maps] == together.errors
    plain = FittedDetector.load(model_with_maps).detect_chunks(images)
    np.testing.assert_allclose(together.scores, Results.joined(list(plain)).scores, rtol=1e-4)
    monkeypatch.setattr("dlsr.encoders.encoder.Encoder.encode", None)
    stored = Results.joined(list(detector.detect_chunks(images)))
    np.testing.assert_allclose(stored.scores, together.scores, rtol=1e-5)


def test_an_image_without_a_finite_score_has_no_map(detector_with_maps, odd_folder, monkeypatch):
    monkeypatch.setattr(
        FittedModel, "score", lambda self, z0, _: (np.full(len(z0), np.nan), np.zeros((len(z0), len(self.channels))))
    )
    (found,) = detector_with_maps.anomaly_maps(sorted(odd_folder.iterdir())[:1])
    assert (found.values, found.error) == (None, "its score is not a finite number")


def test_a_folder_of_mostly_broken_files_can_be_fitted_with_maps(small_encoder, photographs):
    images = [*patches(photographs[0], 60), *[b"no image"] * 600]
    detector = Detector(**small_encoder, score="mahalanobis", group_by="none", maps=True)
    with pytest.warns(UnreadableImagesWarning):
        detector.fit(images)
    (found,) = detector.anomaly_maps(images[:1])
    assert np.isfinite(found.values).all()


def test_a_model_without_maps_says_so_before_it_reads_an_image(model):
    with pytest.raises(SettingsError, match="fit it again with --maps"):
        FittedDetector.load(model).anomaly_maps([b""])


def test_a_score_without_maps_of_its_own_has_none(image_folder, small_encoder):
    shared = Detector(**small_encoder, score="mse", preset="paper", epochs=1, width=8, blocks=1, maps=True)
    other = shared.fit(image_folder).with_settings(score="mfsim")
    with pytest.raises(SettingsError, match="--maps"):
        other.anomaly_maps(image_folder)


def test_the_excess_is_in_standard_deviations_above_the_median_and_nearly_none_below():
    calibration = np.arange(101.0)
    found = excess(np.array([50 - 5 * 34.0, 50.0, 50 + 10 * 34.0]), calibration)
    np.testing.assert_allclose(found, [0, np.log(2), 10], atol=0.01)


def test_faint_places_are_not_drawn_and_strong_ones_are():
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    values = np.zeros((28, 28), np.float32)
    dark = AnomalyMap("a", values, image)
    assert np.array_equal(np.asarray(dark.drawn()), np.asarray(image))
    values = values.copy()
    values[:14] = 5
    drawn = np.asarray(AnomalyMap("a", values, image).drawn())
    assert drawn.shape == (20, 40, 3)
    assert (drawn[:8, :, 0] > 150).all()
    assert (drawn[12:] == (10, 20, 30)).all()


def test_images_for_people_are_small(detector_with_maps):
    large = Image.fromarray(np.zeros((600, 1200, 3), np.uint8))
    (found,) = detector_with_maps.anomaly_maps([large])
    assert found.image.size == (512, 256)
    assert large.size == decode(large).size == (1200, 600)


def test_frames_behind_the_end_of_a_clip_have_no_map(detector_with_maps, odd_folder):
    def fail():
        raise NoSuchImageError("the clip ends after 1 frames")

    first = open_images(odd_folder).items[0]
    found = detector_with_maps.anomaly_maps(ImageDataset([first, ImageItem("clip.mp4#frame=1", fail)]))
    assert [one.path for one in found] == [first.name]
