"""Images added to a fitted model: a fit to all, without encoding again what is known."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, InputError, NoImagesError, NotFittedError, SettingsError, UnreadableImagesWarning
from dlsr.encoders.encoder import Encoder
from dlsr.images.sources import open_images
from dlsr.images.transforms import protocol_transform
from dlsr.model_folder import read_files
from shared import patches, small


@pytest.fixture
def folders(tmp_path, photographs):
    """60 patches of the temple, and 20 others of which 8 show the flower."""
    old, new = tmp_path / "photos" / "old", tmp_path / "photos" / "with" / "new"
    temple, flower = patches(photographs[0], 72, seed=1), patches(photographs[1], 8)
    for folder, images in ((old, temple[:60]), (new, [*temple[60:], *flower])):
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:03}.png")
    return old, new


@pytest.fixture
def encoded(monkeypatch):
    """How many images were encoded, call by call."""
    counts = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels))
    return counts


def content(detector, folder):
    detector.save(folder, graphs=False)
    return read_files(folder)


@pytest.mark.parametrize(
    ("score", "group_by"),
    [("local", "auto"), ("local", "none"), ("local", r"(\d\d)\.png$"), ("mahalanobis", "auto"), ("residual", "auto")],
)
def test_the_model_is_bit_for_bit_that_of_a_fit_to_all(folders, tmp_path, small_encoder, score, group_by, encoded):
    old, new = folders
    (new / "broken.png").write_bytes(b"no image")
    (old / "broken.png").write_bytes(b"no image")
    arguments = {**small_encoder, **small(score), "store": tmp_path / "store", "group_by": group_by, "seed": 3}
    with pytest.warns(UnreadableImagesWarning, match="old/broken"):
        Detector(**arguments).fit(old).save(tmp_path / "model", graphs=False)
    encoded.clear()
    detector = Detector.load(tmp_path / "model", backend="torch", store=tmp_path / "store")
    for path in old.iterdir():
        path.rename(path.with_suffix(".gone"))
    with pytest.warns(UnreadableImagesWarning, match="new/broken") as warned:
        addition = detector.add(new)
    assert "old/broken" not in str(warned[0].message)
    assert sum(encoded) == addition.added == 20
    assert addition.images_before == 60
    for path in old.iterdir():
        path.rename(path.with_suffix(".png"))
    with pytest.warns(UnreadableImagesWarning):
        together = Detector(**arguments).fit(tmp_path / "photos")
    assert sum(encoded) == 20
    assert content(detector, tmp_path / "a") == content(together, tmp_path / "b")
    assert len(detector.fit_summary_.unreadable) == 2


def test_what_is_said_of_scores_and_threshold(folders, tmp_path, small_encoder):
    old, new = folders
    detector = Detector(**small_encoder, store=tmp_path / "store", group_by="none").fit(old)
    before, first = detector.calibration_scores_, detector.detect(new)
    threshold = detector.threshold_
    addition = detector.add(new)
    now = detector.calibration_scores_
    assert (addition.threshold_before, addition.threshold) == (threshold, detector.threshold_)
    assert addition.paired
    assert addition.scores_before.median == np.median(before)
    assert (addition.scores.mean, addition.scores.max) == (now[:60].mean(), now[:60].max())
    assert abs(addition.largest_change) == np.abs(now[:60] - before).max() > 0
    assert addition.ood_before == first.ood > 4
    assert addition.ood == (now[60:] > detector.threshold_).sum() < addition.ood_before


def test_scores_of_a_trained_network_are_those_of_its_calibration_images(folders, tmp_path, small_encoder):
    old, new = folders
    detector = Detector(**small_encoder, **small("residual"), store=tmp_path / "store", group_by="none").fit(old)
    before = detector.calibration_scores_
    addition = detector.add(new)
    assert not addition.paired
    assert addition.largest_change is None
    assert (addition.scores_before.images, addition.scores.images) == (len(before), len(detector.calibration_scores_))
    assert addition.scores_before.max == before.max()
    assert addition.ood == detector.detect(new).ood


def test_the_rate_is_that_of_the_model_as_it_is_set(folders, tmp_path, small_encoder):
    old, new = folders
    Detector(**small_encoder, store=tmp_path / "store", group_by="none", thumbnails=3).fit(old).save(
        tmp_path / "model", graphs=False
    )
    detector = Detector.load(tmp_path / "model", backend="torch", store=tmp_path / "store", false_alarm_rate=0.2)
    detector.score, detector.seed, detector.group_by = "knn", 5, "folder"  # of a next fit, not of this model
    addition = detector.add(new)
    assert addition.threshold == detector.threshold_
    detector.save(tmp_path / "model", graphs=False)
    again = Detector.load(tmp_path / "model")
    assert (again.false_alarm_rate, again.settings_.score, again.seed, again.group_by) == (0.2, "local", 0, "none")
    assert again.fit_summary_.groups == 80


def test_copies_are_left_out_and_counted(folders, tmp_path, small_encoder):
    old, new = folders
    detector = Detector(**small_encoder, store=tmp_path / "store").fit(old)
    for i in range(3):
        # The same pixels in another file.
        Image.open(old / f"{i:03}.png").save(new / f"copy{i}.png", compress_level=0)
    addition = detector.add(new)
    assert (addition.added, addition.copies, detector.fit_summary_.training_images) == (20, 3, 80)
    scores = detector.calibration_scores_
    with pytest.raises(NoImagesError, match="of 23 images, the model was fitted to 23 before, and 0 cannot be read"):
        detector.add(new)
    np.testing.assert_array_equal(detector.calibration_scores_, scores)


def test_old_images_are_given_if_the_store_does_not_hold_them(folders, tmp_path, small_encoder, encoded):
    old, new = folders
    detector = Detector(**small_encoder).fit(old)
    with pytest.raises(InputError, match=r"60 of the 60 images .*no feature store.*000\.png; give the old images too"):
        detector.add(new)
    detector.store = tmp_path / "empty"
    with pytest.raises(InputError, match=r"not in the feature store '.*empty'"):
        detector.add(new)
    detector.store = None
    encoded.clear()
    assert detector.add(new, old=old).images_before == 60
    assert sum(encoded) == 80
    (old / "007.png").unlink()
    with pytest.raises(InputError, match=r"21 of the 80 images"):
        detector.add(patches(Image.open(new / "000.png").resize((64, 64)), 2), old=old)


def test_groups_that_were_given_stay(folders, tmp_path, small_encoder):
    old, new = folders
    detector = Detector(**small_encoder, store=tmp_path / "store").fit(old, groups=[i // 2 for i in range(60)])
    detector.save(tmp_path / "model", graphs=False)
    detector = Detector.load(tmp_path / "model", backend="torch", store=tmp_path / "store")
    (new / "001.png").write_bytes(b"no image")
    shutil.copy(old / "000.png", new / "002.png")
    with pytest.raises(SettingsError, match="give a group for each new image"):
        detector.add(new)
    with pytest.raises(SettingsError, match="there are 20 images, but 3 groups"):
        detector.add(new, groups=[1, 2, 3])
    with pytest.warns(UnreadableImagesWarning):
        detector.add(new, groups=[0, 1, 2, *"aaabbbcccdddeeeff"])
    assert detector.fit_summary_.grouped_by == "given"
    expected = [*np.repeat(range(30), 2), 30, *(31 + i // 3 for i in range(17))]
    np.testing.assert_array_equal(detector.calibration_.groups, expected)
    own = Detector(**small_encoder, store=tmp_path / "store").fit(old)
    with pytest.raises(SettingsError, match="leave out those of new images"):
        own.add(new, groups=range(20))


def test_kept_thumbnails_are_drawn_from_all_images(folders, tmp_path, small_encoder):
    old, new = folders
    detector = Detector(**small_encoder, store=tmp_path / "store", thumbnails=40).fit(old)
    before = detector.examples_
    detector.add(new)
    after = detector.examples_
    assert len(after.names) == len(after.thumbnails) == len(after.z0) == 40
    kept = [thumbnail for thumbnail in after.thumbnails if thumbnail in before.thumbnails]
    assert 22 <= len(kept) <= 38  # 30 on average
    features = dict(zip(before.thumbnails, before.z0, strict=True))
    for thumbnail, z0 in zip(after.thumbnails, after.z0, strict=True):
        np.testing.assert_array_equal(z0, features.get(thumbnail, z0))


def test_images_that_are_not_known_cannot_be_added_to(folders, small_encoder, features, tmp_path):
    old, new = folders
    with pytest.raises(NotFittedError, match="fitted to features"):
        Detector(score="knn").fit_features(features[0]).add(new)
    shrunk = Detector(**small_encoder, store=tmp_path / "store").fit(old, transform=protocol_transform("matched", 32))
    with pytest.raises(NotFittedError, match="transformed"):
        shrunk.add(new)


def test_images_without_names_are_added(folders, tmp_path, small_encoder):
    arrays = [np.stack([np.asarray(Image.open(item.name)) for item in open_images(folder).items]) for folder in folders]
    detector = Detector(**small_encoder, store=tmp_path / "store", group_by="none").fit(arrays[0])
    assert detector.add(arrays[1]).added == 20
    together = Detector(**small_encoder, store=tmp_path / "store", group_by="none").fit(np.concatenate(arrays))
    np.testing.assert_array_equal(detector.calibration_scores_, together.calibration_scores_)


# On the command line


ENCODER = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--score", "mahalanobis"]


@pytest.fixture
def fitted(run, folders, tmp_path):
    store = ["--store", tmp_path / "store"]
    assert run("fit", folders[0], "-o", tmp_path / "model", *ENCODER, *store, "-q").status == 0
    return tmp_path / "model", ["--backend", "torch", *store]


def test_the_model_is_replaced_and_the_changes_are_told(run, folders, fitted, tmp_path):
    model, runtime = fitted
    threshold = Detector.load(model).threshold_
    shutil.copy(folders[0] / "000.png", folders[1] / "copy.png")
    (folders[1] / "bro\nken.png").write_bytes(b"no image")
    done = run("fit", "--add", folders[1], "--model", model, *runtime)
    assert (done.status, done.out) == (0, ""), done.err
    assert "1 of 22 images could not be read" in done.err
    assert r"bro\nken.png" in done.err
    assert "added 20 images to 60; left out as copies of these: 1\n" in done.err
    now = Detector.load(model).threshold_
    assert f"threshold: {threshold:.6g} before, {now:.6g} now\n" in done.err
    assert "of the added images " in done.err
    assert "scores of the 60 earlier images: mean " in done.err
    assert Detector.load(model).fit_summary_.training_images == 80
    again = run("fit", "--add", folders[1], "--model", model, *runtime)
    assert "there is nothing to add" in again.error


def test_another_model_is_written_and_json_printed(run, folders, fitted, tmp_path):
    model, runtime = fitted
    before = read_files(model)
    done = run("fit", "--add", folders[1], "--model", model, "-o", tmp_path / "second", *runtime, "--json")
    assert done.status == 0, done.err
    assert read_files(model) == before
    told = json.loads(done.out)
    assert told["model"] == str(tmp_path / "second")
    assert told["training_images"] == 80
    assert told["addition"]["added"] == 20
    assert told["addition"]["threshold"] == told["threshold"] == Detector.load(tmp_path / "second").threshold_
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos", "second", "store"]


def test_a_calibration_that_is_lost_is_told(run, folders, fitted):
    model, runtime = fitted
    others = folders[0].parent / "others"
    shutil.copytree(folders[0], others)
    for path in others.iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert run("calibrate", model, "--images", others, *runtime).status == 0
    done = run("fit", "--add", folders[1], "--model", model, *runtime)
    assert "the images that the model was calibrated on are not kept" in done.err
    assert "scores of the calibration images: mean" in done.err
    Image.new("RGB", (32, 32)).save(folders[1] / "more.png")
    assert "not kept" not in run("fit", "--add", folders[1], "--model", model, *runtime).err


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--add and --model belong together", "fit --add {new}"),
        ("--add and --model belong together", "fit {old} --model {model}"),
        ("give images to fit to and an --output", "fit"),
        ("give images to fit to and an --output", "fit {old}"),
        ("--false-alarm-rate stays as the model has it", "fit --add {new} --model {model} --false-alarm-rate 0.1"),
        ("--seed stays", "fit --add {new} --model {model} --seed 0"),
        ("--neighbours stays", "fit --add {new} --model {model} --neighbours 5"),
        ("--engine stays", "fit --add {new} --model {model} --engine ray"),
        ("is no model directory", "fit --add {new} --model {old}"),
        ("holds other files", "fit --add {new} --model {model} -o {old}"),
        ("does not exist", "fit --add none --model {model}"),
        ("give the old images too", "fit --add {new} --model {model} --no-store"),
        ("60 of the 60 images", "fit {new} --add {new} --model {model} --no-store"),
    ],
)
def test_an_error_is_one_line_and_leaves_the_model(run, folders, fitted, message, options):
    model, _ = fitted
    before = read_files(model)
    old, new = folders
    done = run(
        *options.format(old=old, new=new, model=model).split(), *(["--backend", "torch"] if "add" in options else [])
    )
    assert message in done.error
    assert read_files(model) == before


def test_the_old_folder_can_be_given(run, folders, fitted):
    model, _ = fitted
    done = run("fit", folders[0], "--add", folders[1], "--model", model, "--no-store", "--backend", "torch")
    assert done.status == 0, done.err
    assert Detector.load(model).fit_summary_.training_images == 80


def test_maps_and_reasons_go_on_with_the_added_images(folders, tmp_path, small_encoder):
    old, new = folders[:2]
    detector = Detector(**small_encoder, score="mahalanobis", maps=True, store=tmp_path / "store").fit(old)
    before = detector._model
    detector.add(new)
    after = detector._model
    np.testing.assert_array_equal(after.map_peaks, before.map_peaks)
    assert after.ranges.images == before.ranges.images + len(list(new.rglob("*.png")))
    (found,) = detector.anomaly_maps([next(new.rglob("*.png"))])
    assert found.values.shape == (28, 28)
