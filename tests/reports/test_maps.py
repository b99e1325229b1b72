import os

import numpy as np
import pytest
from PIL import Image

from dlsr import OutputError
from dlsr.anomaly_maps import AnomalyMap
from dlsr.reports.maps import file_names, write_maps


def named(*names):
    return [str(path) for path in file_names(names)]


def test_files_are_named_after_their_images_below_the_common_folder():
    assert named("photos/a/1.png", "photos/b/1.png") == ["a/1.png.jpg", "b/1.png.jpg"]
    assert named("/data/photos/1.png") == ["1.png.jpg"]


def test_names_of_a_stranger_stay_in_the_folder_and_differ():
    found = file_names(
        ["../../etc/x.png", "/etc/x.png", "etc/x.png", "..", "", "a" * 300 + "1.png", "a" * 300 + "2.png"]
    )
    assert len(set(found)) == 7
    for path in found:
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert len(os.fsencode(path.name)) <= 255


def test_unreadable_images_have_no_file(tmp_path):
    image = Image.new("RGB", (8, 8))
    maps = [AnomalyMap("a.png", np.zeros((28, 28), np.float32), image), AnomalyMap("b.png", error="not an image")]
    results = [object(), object()]
    done = []
    passed = write_maps(tmp_path / "maps", [(results, maps)], ["a.png", "b.png"], done.append)
    assert list(passed) == [results]
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.png.jpg"]
    assert done == [2]


def test_files_follow_from_names_also_where_frames_are_missing(tmp_path):
    def part(name, red):
        image = Image.new("RGB", (8, 8), (red, 0, 0))
        return [object()], [AnomalyMap(name, np.zeros((28, 28), np.float32), image)]

    names = ["clip.mp4#frame=0", "clip.mp4#frame=1", "photo.png"]
    list(write_maps(tmp_path, [part(names[0], 10), part(names[2], 200)], names))
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4#frame=0.jpg", "photo.png.jpg"}
    with Image.open(tmp_path / "photo.png.jpg") as drawn:
        assert drawn.getpixel((4, 4))[0] > 150


def test_images_of_one_name_have_each_a_file(tmp_path):
    image = Image.new("RGB", (8, 8))
    maps = [AnomalyMap("a.png", np.zeros((28, 28), np.float32), image) for _ in range(2)]
    list(write_maps(tmp_path, [([object(), object()], maps)], ["a.png", "a.png"]))
    assert {path.name for path in tmp_path.iterdir()} == {"a.png.jpg", "a.png-2.jpg"}


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "maps").write_bytes(b"a file")
    maps = [AnomalyMap("a.png", np.zeros((28, 28), np.float32), Image.new("RGB", (8, 8)))]
    with pytest.raises(OutputError, match="check space and permissions"):
        list(write_maps(tmp_path / "maps", [([], maps)], ["a.png"]))
