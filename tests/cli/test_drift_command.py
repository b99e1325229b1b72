"""`dlsr drift --reference`: what changed."""

import json

import pytest
from PIL import Image, ImageEnhance

from shared import patches

TORCH = ["--backend", "torch"]


@pytest.fixture
def write(tmp_path, photographs):
    """Write new patches of the photograph that the model was fitted to, each changed, to a folder."""

    def into(name, count=60, change=lambda image: image, seed=5, suffix="png"):
        folder = tmp_path / name
        folder.mkdir()
        for i, patch in enumerate(patches(photographs[0], count, seed=seed)):
            change(Image.fromarray(patch)).save(folder / f"{i:03}.{suffix}")
        return folder

    return into


def test_with_reference_images_and_no_change_nothing_moved(run, model, image_folder, write):
    # New patches overlap with those of the fit, and so score a little lower than images that do not.
    done = run("drift", model, write("new"), "--reference", image_folder, "--alpha", "0.0005", *TORCH)
    assert done.status == 0, done.out
    for line in ("scores did not move", "features did not move (p = ", "did not move: "):
        assert any(text.startswith(line) for text in done.out.splitlines())
    assert "no drift: 60 images match the calibration images and the 120 reference images (alpha 0.0005)" in done.out


def test_what_changed_is_named_with_its_medians_and_drawn(run, model, image_folder, write, tmp_path):
    darker = write("darker", change=lambda image: ImageEnhance.Brightness(image).enhance(0.5))
    done = run("drift", model, darker, "--reference", image_folder, "--plot", tmp_path / "drift.png", *TORCH)
    assert done.status == 1, done.out
    (line,) = (text for text in done.out.splitlines() if text.startswith("brightness moved: "))
    medians = [float(word) for word in line.split() if word.startswith("0.")]
    assert medians[1] < 0.8 * medians[0]
    last = done.out.splitlines()[-1]
    assert last.startswith("drift: 60 images differ from the calibration images and the 120 reference images in ")
    assert "brightness" in last
    assert f"{darker}/" in done.out, "the images most typical of the change are named"
    with Image.open(tmp_path / "drift.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("name", ["plot", "plot.csv"])
def test_a_picture_of_another_kind_is_refused_before_any_work(run, model, image_folder, tmp_path, name):
    done = run("drift", model, image_folder, "--plot", tmp_path / name, *TORCH)
    assert (done.status, list(tmp_path.iterdir())) == (2, [])
    assert "end the name in one of .png, .svg, .pdf" in done.error


def test_a_picture_may_be_a_vector_drawing(run, model, image_folder, tmp_path):
    run("drift", model, image_folder, "--plot", tmp_path / "drift.svg", *TORCH)
    assert "<svg" in (tmp_path / "drift.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_json_output_holds_every_test(run, model, image_folder, write):
    new = write("new", suffix="bmp", change=lambda image: image.resize((40, 40)))
    (new / "broken.png").write_bytes(b"")
    done = run("drift", model, new, "--reference", image_folder, "--json", *TORCH)
    assert done.status == 1
    report = json.loads(done.out)
    tests = {test["name"]: test for test in report["reference"]["properties"]}
    assert {"brightness", "sharpness", "width", "file type"} <= set(tests)
    assert (tests["width"]["before"], tests["width"]["after"]) == (32, 40)
    assert tests["file type"]["after"] == {"BMP": 1, "PNG": 0}
    assert {"width", "height", "file type"} <= set(report["drifted_in"])
    assert 0 < report["reference"]["features"]["p_value"] <= 1
    assert all(str(new) in path for path in report["most_typical_paths"])
    assert list(report["unreadable"]) == [str(new / "broken.png")]
    assert report["reference_unreadable"] == {}


def test_without_reference_images_it_is_said_how_to_be_told_what_changed(run, model, write, tmp_path):
    done = run("drift", model, write("new"), "--plot", tmp_path / "scores.svg", *TORCH)
    assert "to see what changed, give --reference FOLDER with earlier images" in done.out
    assert "features" not in done.out
    assert (tmp_path / "scores.svg").stat().st_size > 1000


def test_unreadable_reference_images_are_named(run, model, image_folder, write):
    reference = write("reference", seed=6)
    (reference / "broken.png").write_bytes(b"no image")
    done = run("drift", model, write("new"), "--reference", reference, *TORCH)
    assert "1 of 61 images could not be read" in done.err
    assert "broken.png: not an image" in done.err


def test_only_so_many_images_are_compared(run, model, image_folder, write, monkeypatch):
    monkeypatch.setattr("dlsr.cli.drift.MOST_COMPARED", 40)
    done = run("drift", model, write("new"), "--reference", image_folder, "--json", *TORCH)
    report = json.loads(done.out)
    assert (report["images"], report["reference"]["images"], report["reference"]["reference_images"]) == (60, 40, 40)


def test_reference_images_that_are_too_few_or_unreadable_are_one_line(run, model, write, tmp_path):
    new = write("new")
    few = write("few", count=10)
    error = run("drift", model, new, "--reference", few, *TORCH).error
    assert "10 reference images are too few to compare; give 20 or more" in error
    for path in few.iterdir():
        path.write_bytes(b"")
    error = run("drift", model, new, "--reference", few, *TORCH).error
    assert "none of 10 reference images can be read" in error
    assert "empty file" in error
    assert "no-such does not exist" in run("drift", model, new, "--reference", tmp_path / "no-such").error.replace(
        "'", ""
    )


def test_settings_that_cannot_work_are_refused_before_a_model_is_loaded(run, model, write, monkeypatch):
    new = write("new")
    monkeypatch.setattr("dlsr.fitted_detector.FittedDetector.load", None)
    assert "allow a higher alpha" in run("drift", model, new, "--reference", new, "--alpha", "0.0001", *TORCH).error
    assert "alpha must lie between 0 and 1, got 3.0" in run("drift", model, new, "--alpha", "3", *TORCH).error
    assert "a window needs at least 20 images, got 5" in run("drift", model, new, "--window", "5", *TORCH).error


def test_a_change_that_leaves_the_medians_alone_is_told_by_the_shares(run, model, image_folder, write):
    new = write("new")
    for path in sorted(new.iterdir())[:20]:
        with Image.open(path) as image:
            image.resize((40, 40)).save(path.with_suffix(".jpg"))
        path.unlink()
    done = run("drift", model, new, "--reference", image_folder, *TORCH)
    assert "width moved: 0 % above 32 before, 33.3 % now (p = " in done.out
    assert "file type moved: 100 % PNG before, 33.3 % JPEG, 66.7 % PNG now (p = " in done.out
