import os
from pathlib import Path

import pytest

from dlsr.errors import ImageError
from dlsr.images.sources import open_images
from dlsr.watch import arrivals
from dlsr.watch.arrivals import Arrivals


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watched(tmp_path, clock):
    folder = tmp_path / "in"
    folder.mkdir()
    done = set()
    return folder, Arrivals(folder, done, 2.0, clock), done


def names(found):
    return [arrival.path.rpartition("/")[2] for arrival in found]


def test_a_file_is_ready_when_it_has_not_changed_for_a_while(watched, clock):
    folder, source, _ = watched
    (folder / "a.png").write_bytes(b"1")
    assert source.ready() == []
    clock.now += 1
    (folder / "a.png").write_bytes(b"12")  # still being written
    assert source.ready() == []
    clock.now += 1.5
    assert source.ready() == []
    assert source.waiting == 1
    clock.now += 1
    (found,) = source.ready()
    assert (found.size, found.since) == (2, 101.0)
    assert found.item.read() == b"12"


def test_what_is_done_is_not_given_again_but_a_replaced_file_is(watched, clock):
    folder, source, done = watched
    path = folder / "sub" / "a.JPG"
    path.parent.mkdir()
    path.write_bytes(b"1")
    source.ready()
    clock.now += 2
    (first,) = source.ready()
    done.add(first.id)
    for _ in range(3):
        assert source.ready() == []
        assert source.waiting == 0
    os.utime(path, ns=(0, 12345))  # of the same name and size
    source.ready()
    clock.now += 2
    (second,) = source.ready()
    assert second.path == first.path
    assert second.id != first.id


def test_the_id_does_not_depend_on_how_the_folder_is_named(watched, clock, monkeypatch):
    folder, source, _ = watched
    (folder / "a.png").write_bytes(b"1")
    monkeypatch.chdir(folder.parent)
    other = Arrivals(folder.relative_to(folder.parent), set(), 2.0, clock)
    both = (source, other)
    assert [each.ready() for each in both] == [[], []]
    clock.now += 2
    assert len({each.ready()[0].id for each in both}) == 1


def test_other_files_and_linked_folders_are_left_alone(watched, clock, tmp_path):
    folder, source, _ = watched
    for name in ("a.txt", "b.png.part", "clip.mp4"):
        (folder / name).touch()
    (folder / "linked").symlink_to(tmp_path)
    source.ready()
    clock.now += 2
    assert source.ready() == []
    assert source.waiting == 0


def test_files_have_the_suffixes_that_a_fit_sees(watched, clock):
    """`..png` was never scored."""
    folder, source, _ = watched
    for name in ("..png", ".png", "a.b.PNG"):
        (folder / name).touch()
    source.ready()
    clock.now += 2
    found = [Path(item.name).name for item in open_images(folder).items]
    assert names(source.ready()) == found == ["..png", "a.b.PNG"]


def test_a_folder_that_was_gone_is_looked_at_anew(watched, clock):
    folder, source, _ = watched
    (folder / "a.png").write_bytes(b"1")
    source.ready()
    clock.now += 2
    folder.rename(folder.with_name("away"))
    with pytest.raises(FileNotFoundError):
        source.ready()
    folder.with_name("away").rename(folder)
    assert source.ready() == []
    clock.now += 2
    assert names(source.ready()) == ["a.png"]


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_the_one_before(watched, clock):
    folder, source, _ = watched
    (folder / "a.png").write_bytes(b"1")
    source.ready()
    clock.now += 2
    (found,) = source.ready()
    assert found.is_there()
    (folder / "a.png").write_bytes(b"12")
    with pytest.raises(ImageError, match="it has changed"):
        found.read()
    assert not found.is_there()


def test_what_cannot_be_looked_at_is_named(watched, clock):
    folder, source, _ = watched
    (folder / "gone.png").symlink_to("nowhere")
    source.ready()
    assert source.problems == {str(folder / "gone.png"): "No such file or directory"}
    (folder / "gone.png").unlink()
    source.ready()
    assert source.problems == {}


def test_many_files_come_in_parts_and_in_order(watched, clock, monkeypatch):
    monkeypatch.setattr(arrivals, "MOST_READY", 3)
    monkeypatch.setattr(arrivals, "MOST_WAITING", 5)
    folder, source, done = watched
    for i in range(12):
        (folder / f"{i:02}.png").touch()
    given = []
    for _ in range(20):
        found = source.ready()
        assert len(found) <= 3
        assert source.waiting <= 5
        given += names(found)
        done.update(arrival.id for arrival in found)
        clock.now += 2
    assert given == [f"{i:02}.png" for i in range(12)]


def test_names_that_are_not_utf8_are_read(watched, clock):
    folder, source, _ = watched
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"1")
    source.ready()
    clock.now += 2
    (found,) = source.ready()
    assert found.item.name.endswith(r"caf\udce9.png")
    assert found.item.read() == b"1"
