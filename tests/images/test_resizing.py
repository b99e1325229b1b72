import sys
import threading

import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, SettingsError, encoder_spec
from dlsr.images import resizing
from dlsr.images.resizing import RESIZERS, choose_resizer, resize, resizer_version


@pytest.fixture
def uninstalled(monkeypatch):
    """As on a platform without wheels of cykooz.resizer."""
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    monkeypatch.setattr(resizing, "find_spec", lambda name: None)
    resizing._cykooz.cache_clear()
    yield
    resizing._cykooz.cache_clear()


@pytest.mark.parametrize("resizer", RESIZERS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_gives_the_size_for_images_of_any_size(interpolation, resizer):
    for size in ((1, 1), (3, 700), (65_535, 1)):
        pixels = resize(Image.new("RGB", size, (3, 90, 200)), 8, interpolation, resizer)
        assert pixels.shape == (8, 8, 3)
        assert (pixels == [3, 90, 200]).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_of_the_size_stays_as_it_is_in_either_library(photographs, interpolation):
    image = photographs[0].resize((224, 224))
    module, options = resizing._cykooz(interpolation)
    resized = Image.new("RGB", (224, 224))
    module.Resizer().resize_pil(image, resized, options)
    by_pillow = image.resize((224, 224), resizing._RESAMPLING[interpolation])
    for resizer in RESIZERS:
        pixels = resize(image, 224, interpolation, resizer)
        np.testing.assert_array_equal(pixels, np.asarray(by_pillow))
        np.testing.assert_array_equal(pixels, np.asarray(resized))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 427), (97, 640), (20, 30)])
def test_both_resizers_agree(photographs, interpolation, size):
    image = photographs[0].resize(size)
    pillow, cykooz = (resize(image, 224, interpolation, resizer).astype(int) for resizer in RESIZERS)
    difference = np.abs(pillow - cykooz)
    assert difference.mean() < 0.2
    assert np.quantile(difference, 0.999) <= 1


def test_the_fast_resizer_serves_several_threads_at_once(photographs):
    expected, found = resize(photographs[0], 100, "bicubic", "cykooz"), []

    def work():
        for _ in range(20):
            found.append(np.array_equal(resize(photographs[0], 100, "bicubic", "cykooz"), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_auto_is_the_fast_resizer_where_it_is_installed():
    assert choose_resizer("auto") == encoder_spec("resnet50").resizer == "cykooz"
    assert choose_resizer("pillow") == encoder_spec("resnet50", resizer="pillow").resizer == "pillow"
    with pytest.raises(SettingsError, match="choose one of auto, pillow, cykooz"):
        choose_resizer("nearest")


@pytest.mark.usefixtures("uninstalled")
def test_elsewhere_auto_is_pillow_and_models_that_need_the_fast_one_are_refused():
    assert choose_resizer("auto") == encoder_spec("resnet50").resizer == "pillow"
    remedy = "run: pip install cykooz.resizer, or fit with --resizer pillow"
    for needs_it in (
        lambda: choose_resizer("cykooz"),
        lambda: resize(Image.new("RGB", (2, 2)), 2, "bicubic", "cykooz"),
    ):
        with pytest.raises(SettingsError, match=remedy):
            needs_it()


def test_the_resizer_is_part_of_what_features_depend_on_and_of_the_model(image_folder, small_encoder, tmp_path):
    keys = set()
    for resizer in RESIZERS:
        detector = Detector(**small_encoder, resizer=resizer, score="knn", group_by="none")
        detector.fit(image_folder).save(tmp_path / resizer)
        loaded = Detector.load(tmp_path / resizer)
        assert loaded.extractor_.spec.resizer == resizer
        np.testing.assert_allclose(loaded.score_samples(image_folder), detector.score_samples(image_folder), rtol=1e-5)
        keys.add(loaded.extractor_.encoder.key)
    assert len(keys) == 2
    assert resizer_version("cykooz") != resizer_version("pillow")
