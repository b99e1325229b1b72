"""Results as FiftyOne and Label Studio import them."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from PIL import Image

from dlsr import OutputError, SettingsError
from dlsr.cli.options import FormatName
from dlsr.reports.formats import FORMATS, FiftyOne, ImageRoot, LabelStudio
from dlsr.results import Result

RESULTS = [
    Result("photos/ü.png", 1.5, 0.25, False, "stage 1", layers={"stage 1": 2.0}, nearest=(3,)),
    Result('photos/a/<b>"\n&?.png', 3.0, 0.01, True, "stage 2"),
    Result("photos/broken.png", error="empty file"),
]


def written(form, folder, results=RESULTS):
    form.write(folder, iter(results))
    assert sorted(path.name for path in folder.iterdir()) == sorted(form.files)
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in form.files if name.endswith(".json")]


def test_every_format_is_an_option():
    assert {"table", *FORMATS} == {name.value for name in FormatName}


def test_fiftyone_gets_paths_and_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, labels = written(FiftyOne(ImageRoot(Path("photos"))), tmp_path / "out")
    assert list(data.values()) == [str(tmp_path / result.path) for result in RESULTS]
    assert labels["classes"] == ["ID", "OOD", "unreadable"]
    assert labels["labels"].keys() == data.keys()
    assert list(labels["labels"].values()) == [
        {"label": "ID", "attributes": {"score": 1.5, "p_value": 0.25, "top_layer": "stage 1"}},
        {"label": "OOD", "attributes": {"score": 3.0, "p_value": 0.01, "top_layer": "stage 2"}},
        {"label": "unreadable", "attributes": {"error": "empty file"}},
    ]
    elsewhere, _ = written(FiftyOne(ImageRoot(Path("photos"), "/mnt/p/")), tmp_path / "out")
    assert next(iter(elsewhere.values())) == "/mnt/p/ü.png"


def test_label_studio_gets_tasks_with_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tasks,) = written(LabelStudio(ImageRoot(Path("photos"))), tmp_path / "out")
    for task, result in zip(tasks, RESULTS, strict=True):
        address = urlparse(task["data"]["image"])
        assert (address.path, parse_qs(address.query)) == (
            "/data/local-files/",
            {"d": [str(tmp_path / result.path)[1:]]},
        )
    assert tasks[1]["data"]["score"] == 3.0
    (prediction,) = tasks[1]["predictions"]
    assert prediction["score"] == 0.01
    assert prediction["result"][0]["value"] == {"choices": ["OOD"]}
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["ID"]}
    assert tasks[2] == {"data": {"image": tasks[2]["data"]["image"], "path": RESULTS[2].path, "error": "empty file"}}
    interface = ET.parse(tmp_path / "out" / "interface.xml")
    region = prediction["result"][0]
    (choices,) = interface.iter("Choices")
    assert (choices.get("name"), choices.get("toName")) == (region["from_name"], region["to_name"])
    assert [choice.get("value") for choice in choices] == ["ID", "OOD"]
    assert interface.find("Image").get("value") == "$image"
    (tasks,) = written(LabelStudio(ImageRoot(Path("photos"), "https://host/bucket")), tmp_path / "out")
    assert tasks[0]["data"]["image"] == "https://host/bucket/%C3%BC.png"
    assert tasks[1]["data"]["image"] == "https://host/bucket/a/%3Cb%3E%22%0A%26%3F.png"


@pytest.mark.parametrize("kind", FORMATS.values())
def test_an_empty_result_is_valid(tmp_path, kind):
    assert written(kind(ImageRoot(tmp_path)), tmp_path / "out", [])


@pytest.mark.parametrize("kind", FORMATS.values())
def test_a_run_that_fails_leaves_what_was_there(tmp_path, kind):
    def failing():
        yield RESULTS[0]
        raise RuntimeError("the engine broke")

    form = kind(ImageRoot(tmp_path))
    before = written(form, tmp_path / "out")
    with pytest.raises(RuntimeError, match="the engine broke"):
        form.write(tmp_path / "out", failing())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert written(form, tmp_path / "out") == before


@pytest.mark.parametrize("kind", FORMATS.values())
def test_other_files_are_never_replaced(tmp_path, kind):
    form = kind(ImageRoot(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    for folder, message in ((tmp_path, "holds other files, such as notes.txt"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(OutputError, match=message):
            form.write(folder, RESULTS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_images_in_a_tar_need_a_root():
    with pytest.raises(SettingsError, match=r"is a tar, .*--image-root"):
        ImageRoot(Path("photos.tar.gz"))
    assert ImageRoot(Path("photos.tar"), "unpacked").below("unpacked", "a/b.png") == "unpacked/a/b.png"
    assert ImageRoot(Path("a.png"), "http://h/a.png").below("http://h/a.png", "a.png") == "http://h/a.png"
    for root in (None, "unpacked"):
        with pytest.raises(SettingsError, match="is a clip, whose frames are no files"):
            ImageRoot(Path("photos.mp4"), root)


@pytest.mark.parametrize("name", FORMATS)
def test_score_writes_a_folder(run, model, odd_folder, tmp_path, name):
    (tmp_path / "images").mkdir()
    for path in sorted(odd_folder.iterdir())[:3]:
        Image.open(path).save(tmp_path / "images" / path.name)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    arguments = ["score", model, tmp_path / "images", "--backend", "torch", "--format", name]
    done = run(*arguments, "-o", tmp_path / "out", "--fdr", "0.2", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["images"] == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FORMATS[name].files)
    assert str(tmp_path / "images" / "broken.png") in (tmp_path / "out" / FORMATS[name].files[0]).read_text()
    assert "needs --output FOLDER" in run(*arguments).error
    assert "holds other files" in run(*arguments, "-o", tmp_path / "images").error


@pytest.mark.parametrize("name", FORMATS)
def test_groups_are_written_too(run, model, image_folder, odd_folder, tmp_path, name):
    done = run("score", model, odd_folder, "--backend", "torch", "--format", name, "--groups", "-o", tmp_path / "out")
    assert done.status == 0, done.err
    text = "".join((tmp_path / "out" / file).read_text() for file in FORMATS[name].files)
    assert '"group": ' in text


def test_a_root_needs_a_format(run, model, odd_folder):
    assert "--image-root is for --format" in run("score", model, odd_folder, "--image-root", "x").error
