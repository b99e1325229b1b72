import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, NoImagesError
from dlsr.audit import COLUMNS, FAULTS, audit
from dlsr.fitting import UNLIKE
from dlsr.images.sources import open_images
from shared import small


@pytest.fixture
def detector(small_encoder):
    return Detector(**small_encoder, pooling="mean")


@pytest.fixture
def folder(tmp_path, image_folder, odd_folder):
    """30 images, of which one has two exact copies, one a near copy, one is all black, one unreadable, one unlike."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))[:60:2]):
        shutil.copy(path, folder / f"{i:02}.png")
    with Image.open(folder / "00.png") as image:
        image.save(folder / "copy.bmp")
        image.save(folder / "copy.tif")
    with Image.open(folder / "01.png") as image:
        image.point(lambda value: min(value + 1, 255)).save(folder / "near.png")
    Image.new("RGB", (32, 32)).save(folder / "black.png")
    (folder / "=broken\n<b>.png").write_bytes(b"no image")
    return folder


def names(found, kind):
    return {found.names[i].rpartition("/")[2] for i in found.faults[kind]}


def test_each_fault_of_a_folder_is_found(detector, folder):
    found = audit(folder, detector=detector)
    assert names(found, "unreadable") == {"=broken\n<b>.png"}
    assert names(found, "exact-copies") == {"00.png", "copy.bmp", "copy.tif"}
    assert {"01.png", "near.png"} <= names(found, "near-copies")
    assert "black.png" in names(found, "dark") & names(found, "low-information")
    assert list(found.faults) == [kind for kind in FAULTS if not kind.endswith("-leaks")]
    assert found.faulty(["unreadable", "exact-copies"]) == 4
    assert found.faulty(["exact-leaks"]) == 0
    (exact,) = found.sets["exact-copies"]
    assert len(exact.images) == 3
    assert found.notes == []


def test_images_unlike_the_rest_are_those_of_a_fit(detector, folder):
    found = audit(folder, detector=detector)
    readable = [i for i, error in enumerate(found.errors) if error is None]
    fitted = Detector(**detector.get_params()).fit(open_images(folder).subset(readable))
    order = found.least_like_the_rest(5)
    assert found.deviations[order].tolist() == sorted(found.deviations[readable], reverse=True)[:5]
    scores = fitted.calibration_scores_
    assert order == [readable[i] for i in np.argsort(-scores)[:5]]
    assert found.faults["unlike"] == [i for i in order if found.deviations[i] > UNLIKE]


def test_copies_do_not_make_other_images_unlike_the_rest(detector, image_folder):
    """The standard deviation was that of the copies: 0, so that all images beyond the median were unlike the rest."""
    paths = sorted(image_folder.rglob("*.png"))[:40]
    found = audit(paths + [paths[0]] * 40, detector=detector)
    assert found.deviations.max() < 6
    assert len(found.faults["unlike"]) < 4, "of which the fit to so many copies finds some"


@pytest.mark.parametrize(
    "settings", [{"false_alarm_rate": 0.001}, {"confidence": 0.999}, {"calibration": "held-out"}], ids=str
)
def test_a_detector_whose_rate_needs_more_images_can_audit_fewer(detector, image_folder, settings):
    paths = sorted(image_folder.rglob("*.png"))[:30]
    expected = audit(paths, detector=detector)
    found = audit(paths, detector=Detector(**detector.get_params() | settings))
    np.testing.assert_array_equal(found.deviations, expected.deviations)


def test_too_few_images_for_a_score_are_told(detector, image_folder):
    paths = sorted(image_folder.rglob("*.png"))[:24]
    residual = Detector(**detector.get_params() | small("residual"))
    assert "24 images are too few for this score" in audit(paths, detector=residual).notes[0]


def test_copies_in_another_folder_are_leaks(detector, folder, tmp_path, odd_folder):
    other = tmp_path / "other"
    shutil.copytree(odd_folder, other)
    shutil.copy(folder / "05.png", other / "same.png")
    with Image.open(folder / "06.png") as image:
        image.point(lambda value: min(value + 1, 255)).save(other / "nearly.png")
    (other / "broken.png").write_bytes(b"")
    found = audit(folder, against=other, detector=detector)
    assert names(found, "exact-leaks") == {"05.png"}
    leaks = names(found, "near-leaks")
    assert "06.png" in leaks
    assert not leaks & {"05.png", "black.png"}
    assert [name.rpartition("/")[2] for name in found.against_unreadable] == ["broken.png"]
    rows = {row["path"].rpartition("/")[2]: row for row in found.rows()}
    assert rows["05.png"]["leak"] == str(other / "same.png")
    assert rows["06.png"]["leak"] == str(other / "nearly.png")
    assert rows["black.png"]["leak"] is None


def test_the_table_has_a_row_for_each_image_and_no_formula(detector, folder, tmp_path):
    found = audit([*sorted(folder.iterdir())], detector=detector)
    found.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(found.names)
    by_name = {row["path"].rpartition("/")[2]: row for row in rows}
    assert by_name["copy.bmp"]["exact_set"] == by_name["00.png"]["exact_set"] == "1"
    assert "exact-copies" in by_name["copy.tif"]["faults"].split()
    assert by_name["=broken\n<b>.png"]["width"] == ""
    assert by_name["=broken\n<b>.png"]["error"].startswith("not an image")
    assert float(by_name["black.png"]["bright_end"]) == 0


def test_an_audit_as_json_names_the_images(detector, folder):
    content = json.loads(json.dumps(audit(folder, detector=detector).as_dict(), allow_nan=False))
    assert content["images"] == 35
    assert content["faults"]["unreadable"] == [content["unreadable"][0]["path"]]
    assert len(content["sets"]["exact-copies"][0]["images"]) == 3
    assert content["least_like_the_rest"][0]["deviation"] >= content["least_like_the_rest"][1]["deviation"]


def test_each_image_is_read_once_and_a_second_audit_and_a_fit_encode_nothing(
    small_encoder, folder, tmp_path, monkeypatch
):
    from dlsr.encoders.encoder import Encoder
    from dlsr.images import sources

    read, encoded = [], []
    read_file, encode = sources.read_file, Encoder.encode
    monkeypatch.setattr(sources, "read_file", lambda path: read.append(path) or read_file(path))
    monkeypatch.setattr(Encoder, "encode", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels))
    detector = Detector(**small_encoder, pooling="mean", store=tmp_path / "store")
    first = audit(folder, detector=detector)
    assert sorted(read) == sorted(first.names)
    assert sum(encoded) == 34
    encoded.clear()
    again = audit(folder, detector=detector)
    assert again.as_dict() == first.as_dict()
    with pytest.warns(UserWarning, match="could not be read"):
        detector.fit(folder)
    assert encoded == []


def test_few_images_are_examined_and_what_cannot_be_done_is_told(detector, image_folder):
    paths = sorted(image_folder.rglob("*.png"))[:3]
    found = audit([*paths, paths[0]], detector=detector)
    assert found.faults["exact-copies"] == [0, 3]
    assert found.faults["unlike"] == []
    assert [note.partition(" were")[0] for note in found.notes] == ["images unlike the rest", "near copies"]


def test_many_copies_of_few_images_are_examined(detector, image_folder):
    paths = sorted(image_folder.rglob("*.png"))[:2]
    found = audit(paths * 40, detector=detector)
    assert len(found.faults["exact-copies"]) == 80
    assert len(found.notes) == 2


def test_a_folder_without_a_readable_image_is_reported(detector, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    found = audit(tmp_path, detector=detector)
    assert found.faults["unreadable"] == [0]
    assert next(found.rows())["error"] == "empty file"


def test_nothing_readable_to_compare_with_is_an_error(detector, image_folder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(NoImagesError, match="to compare with"):
        audit(image_folder, against=tmp_path, detector=detector)


def test_the_detector_is_not_changed(model, image_folder):
    detector = Detector.load(model, backend="torch")
    before = detector.threshold_
    audit(image_folder, detector=detector)
    assert detector.threshold_ == before
    assert detector.detect(image_folder).scores.shape == (120,)
