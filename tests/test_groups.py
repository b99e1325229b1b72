"""Groups of images, from the arguments of a detector to its p-values."""

from pathlib import Path

import numpy as np
import pandas
import pytest

from dlsr import Detector, open_images, threshold
from dlsr.errors import DlsrError, InputError, NoSuchImageError, SettingsError, TooFewImagesError
from dlsr.images.sources import ImageDataset, ImageItem
from shared import small

CHANNELS = (4, 8, 12)


def originals(n, seed):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 24)) @ np.random.default_rng(9).standard_normal((24, 24))


def near_copies(seed):
    """120 samples in random order: 40 originals and two near copies of each, and the number of the original."""
    random = np.random.default_rng(seed)
    order = random.permutation(120)
    rows = np.repeat(originals(40, seed), 3, axis=0) + 0.01 * random.standard_normal((120, 24))
    return rows[order], (np.arange(120) // 3)[order]


@pytest.fixture(scope="module")
def copies():
    return near_copies(0)


@pytest.mark.parametrize("calibration", ["leave-one-out", "held-out"])
@pytest.mark.parametrize("score", ["local", "knn", "mahalanobis"])
def test_the_rate_of_new_images_is_only_held_if_near_copies_are_grouped(score, calibration):
    common = small(score, neighbours=2) | {"calibration": calibration, "false_alarm_rate": 0.1}
    new, rates = originals(500, seed=1000), []
    for seed in range(8):
        rows, groups = near_copies(seed)
        alone = Detector(**common, group_by="none", seed=seed).fit_features(rows, CHANNELS)
        grouped = Detector(**common, seed=seed).fit_features(rows, CHANNELS, groups=list(groups))
        rates.append([(fit.score_features(new) > fit.threshold_).mean() for fit in (alone, grouped)])
    assert (grouped.fit_summary_.groups, grouped.fit_summary_.grouped_by) == (40, "given")
    assert (alone.fit_summary_.groups, alone.fit_summary_.grouped_by) == (120, "none")
    assert np.mean(rates, axis=0)[0] > 0.3
    assert np.mean(rates, axis=0)[1] < 0.2


def test_groups_stay_together_in_a_held_out_calibration(copies):
    rows, groups = copies
    detector = Detector(score="knn", calibration="held-out", group_by="none", false_alarm_rate=0.2)
    detector.fit_features(rows, CHANNELS, groups=[f"patient {g}" for g in groups])
    calibration = detector.calibration_
    sizes = np.unique(calibration.groups, return_counts=True)[1]
    assert (sizes == 3).all()
    assert len(calibration.scores) == 3 * len(sizes)


def test_groups_and_confidence_are_kept_with_the_model(copies, tmp_path):
    rows, groups = copies
    detector = Detector(score="knn", group_by="none", confidence=0.9, false_alarm_rate=0.2)
    detector.fit_features(rows, CHANNELS, groups=list(groups)).save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.calibration_.groups, detector.calibration_.groups)
    assert (loaded.threshold_, loaded.confidence) == (detector.threshold_, 0.9)
    average = Detector.load(tmp_path / "model").set_params(confidence=None)
    assert average.threshold_ < loaded.threshold_
    assert Detector.load(tmp_path / "model", confidence=0.99).threshold_ >= loaded.threshold_


def test_that_images_were_left_out_in_turn_is_kept_with_the_model(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, sum(CHANNELS))).astype(np.float32)
    for calibration in ("leave-one-out", "held-out"):
        detector = Detector(score="knn", group_by="none", confidence=0.9, calibration=calibration)
        detector.fit_features(rows, CHANNELS).save(tmp_path / calibration)
        loaded = Detector.load(tmp_path / calibration)
        assert loaded.calibration_.left_out == (calibration == "leave-one-out")
        scores = loaded.calibration_.scores
        expected = threshold(scores, 0.05, None, 0.9, left_out=calibration == "leave-one-out")
        assert loaded.threshold_ == detector.threshold_ == expected
    with pytest.raises(TooFewImagesError, match=r"0\.05 with a confidence of 0\.95; give at least 68"):
        Detector(score="knn", group_by="none", confidence=0.95).fit_features(rows[:67], CHANNELS)


def test_groups_that_cannot_be_used_are_one_clear_error(copies):
    rows, groups = copies
    detector = Detector(score="knn")
    with pytest.raises(SettingsError, match="there are 120 features, but 119 groups; give a label for each"):
        detector.fit_features(rows, CHANNELS, groups=list(groups[1:]))
    with pytest.raises(TooFewImagesError, match="120 images in 1 groups"):
        detector.fit_features(rows, CHANNELS, groups=["all"] * 120)
    with pytest.raises(SettingsError, match="features have no names to group by 'folder'"):
        Detector(score="knn", group_by="folder").fit_features(rows, CHANNELS)
    with pytest.raises(SettingsError, match="the confidence must lie between 0 and 1, got 2"):
        Detector(score="knn", confidence=2).fit_features(rows, CHANNELS)
    with pytest.raises(SettingsError, match="cannot be calibrated by leaving out each of 120 images"):
        Detector(**small("mse"), calibration="leave-one-out").fit_features(rows, CHANNELS)


def test_images_are_grouped_by_their_names(small_encoder, image_folder):
    detector = Detector(**small_encoder, score="knn", group_by=r"(\d)\.\w+$", false_alarm_rate=0.2)
    detector.fit(image_folder)
    assert detector.fit_summary_.groups == 10
    with pytest.raises(InputError, match="gives no group to"):
        Detector(**small_encoder, score="knn", group_by="video").fit(image_folder)
    with pytest.raises(TooFewImagesError, match="120 images in 2 groups"):
        Detector(**small_encoder, score="knn", group_by="folder").fit(image_folder)


@pytest.mark.parametrize(
    ("arguments", "groups", "message"),
    [
        ({"group_by": "("}, None, "is no regular expression"),
        ({"group_by": "groups.csv"}, None, "cannot read 'groups.csv'"),
        ({"group_by": "video"}, None, "gives no group to 120 of 120 images"),
        ({}, [1, 2], "there are 120 images, but 2 groups"),
        ({"score": "residual", "calibration": "leave-one-out"}, None, "cannot be calibrated by leaving out each"),
    ],
)
def test_what_cannot_work_is_said_before_images_are_encoded(small_encoder, image_folder, arguments, groups, message):
    done = []
    with pytest.raises(DlsrError, match=message):
        Detector(**small_encoder, **arguments).fit(image_folder, groups=groups, progress=done.append)
    assert not done


def test_groups_stay_with_their_images_if_a_clip_is_shorter_than_it_seemed(small_encoder, image_folder):
    """The last 10 of the first 50 images do not exist; the next 50 had the groups of those before."""

    def gone():
        raise NoSuchImageError("the clip ends")

    first, second = (open_images(image_folder).items[start : start + 50] for start in (0, 50))
    missing = [ImageItem(f"gone {i}", gone) for i in range(10)]
    clips = ImageDataset([*first[:40], *missing, *second])
    groups = ["A"] * 50 + ["B"] * 50
    detector = Detector(**small_encoder, score="mahalanobis", false_alarm_rate=0.5, thumbnails=90)
    detector.fit(clips, groups=groups)
    assert np.bincount(detector.calibration_.groups).tolist() == [40, 50]
    indexed = pandas.Series(groups, index=np.roll(range(100), 10))
    detector.fit(clips, groups=indexed)
    assert np.bincount(detector.calibration_.groups).tolist() == [40, 50], "by place, not by index"
    assert sorted(detector.examples_.names) == sorted(Path(item.name).name for item in (*first[:40], *second))


def test_groups_are_checked_before_calibration_images_are_encoded(small_encoder, image_folder):
    detector, done = Detector(**small_encoder, score="mahalanobis").fit(image_folder), []
    with pytest.raises(DlsrError, match="there are 120 images, but 2 groups"):
        detector.calibrate(image_folder, groups=[1, 2], progress=done.append)
    assert not done
