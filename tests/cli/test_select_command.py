import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

TORCH = ("--backend", "torch", "--no-store")


@pytest.fixture
def mixed(tmp_path, image_folder, odd_folder):
    """20 ID images and 20 odd ones in two subfolders, with the same names."""
    folder = tmp_path / "mixed"
    for source, name in ((image_folder, "id"), (odd_folder, "odd")):
        (folder / name).mkdir(parents=True)
        for i, path in enumerate(sorted(source.rglob("*.png"))[:20]):
            shutil.copy(path, folder / name / f"{i:02}.png")
    return folder


def test_images_are_listed_as_csv(run, model, mixed):
    done = run("select", model, mixed, "--count", "5", *TORCH)
    assert done.status == 0
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 5
    assert tuple(rows[0]) == ("path", "score", "p_value", "is_ood", "top_layer", "copies", "copied_to")
    assert all(row["is_ood"] == "True" for row in rows)
    assert "selected 5 of 40 images" in done.err


def test_images_are_copied_without_overwriting_and_same_names_are_kept_apart(run, model, mixed, tmp_path):
    out = tmp_path / "chosen"
    out.mkdir()
    (out / "03.png").write_bytes(b"mine")
    arguments = ("select", model, mixed, "--count", "40", "--fill", "--copy", out, "--json", *TORCH)
    content = json.loads(run(*arguments).out)
    assert (out / "03.png").read_bytes() == b"mine"
    copied = {row["path"]: row["copied_to"] for row in content["selected"]}
    assert len(set(copied.values())) == len(copied) == len(list(out.iterdir())) - 1
    for path, target in copied.items():
        assert Path(path).read_bytes() == Path(target).read_bytes()
    assert any(target.endswith("-2.png") for target in copied.values())
    assert json.loads(run(*arguments).out) == content, "a second run writes nothing anew"
    assert len(list(out.iterdir())) == len(copied) + 1


def test_what_was_selected_if_there_are_not_enough_is_told(run, model, mixed, tmp_path):
    few = run("select", model, mixed, "-n", "39", "-o", tmp_path / "list.csv", *TORCH)
    assert few.out == ""
    assert "--fill adds the images with the next highest scores" in few.err
    refused = (tmp_path / "list.csv").read_text().count("\n") - 1
    filled = run("select", model, mixed, "-n", "30", "--fill", *TORCH)
    assert f"{30 - refused} of those selected are in distribution" in filled.err


def test_mistakes_are_one_line(run, model, mixed, tmp_path):
    assert "is inside" in run("select", model, mixed, "--copy", mixed / "chosen", *TORCH).error
    (tmp_path / "file").write_text("")
    assert "it is no folder" in run("select", model, mixed, "--copy", tmp_path / "file", *TORCH).error
    assert "does not exist" in run("select", model, tmp_path / "none", *TORCH).error


def test_frames_of_a_clip_are_copied_as_images(run, model, photographs, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(0, 200, 20):
            frame = photographs[1].crop((i, i, i + 64, i + 64))
            clip.mux(stream.encode(av.VideoFrame.from_image(frame)))
        clip.mux(stream.encode())
    done = run("select", model, tmp_path / "clip.mp4", "--count", "2", "--fill", "--copy", tmp_path / "chosen", *TORCH)
    assert done.status == 0, done.err
    files = sorted((tmp_path / "chosen").iterdir())
    assert len(files) == 2
    for file in files:
        assert file.name.startswith("clip.mp4#frame=")
        with Image.open(file) as image:
            assert (image.format, image.size) == ("PNG", (64, 64))
