import errno
import json
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dlsr import OutputError
from dlsr.files import (
    add_file,
    appending,
    check_replaceable,
    growing,
    left_of,
    remove_old,
    replacing,
    replacing_folder,
    write_arrays,
    write_json,
)
from shared import files_no_larger_than


def write_bytes(path):
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(100_000))


def write_numbers(path):
    write_arrays(path, {"x": np.zeros(10_000)}, {})


def write_folder(path):
    with replacing_folder(path) as temporary:
        (temporary / "file").write_bytes(bytes(100_000))


@pytest.fixture
def forbid_umask(monkeypatch):
    """`os.umask` changes the mask of all threads, even where a caller only wants to read it."""

    def umask(mask):
        raise AssertionError("os.umask was called")

    monkeypatch.setattr(os, "umask", umask)


def test_files_get_ordinary_permissions_without_changing_the_umask(tmp_path, forbid_umask):
    (tmp_path / "ordinary").touch()
    (tmp_path / "folder").mkdir()
    write_json(tmp_path / "a.json", {})
    write_numbers(tmp_path / "a.safetensors")
    write_folder(tmp_path / "written")

    def mode(name):
        return stat.filemode((tmp_path / name).stat().st_mode)

    assert mode("a.json") == mode("a.safetensors") == mode("written/file") == mode("ordinary")
    assert mode("written") == mode("folder")


def test_the_umask_is_applied(tmp_path):
    script = """
import os, sys
from pathlib import Path
from dlsr.files import replacing, replacing_folder
os.umask(0o027)
with replacing(Path(sys.argv[1], "file")) as temporary:
    temporary.write_text("x")
with replacing_folder(Path(sys.argv[1], "folder")):
    pass
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("write", [write_bytes, write_numbers, write_folder])
def test_a_full_disk_is_reported_with_the_name_of_the_target_and_leaves_nothing(tmp_path, write):
    with files_no_larger_than(1000), pytest.raises(OutputError, match=r"target\.bin': .*check space and permissions"):
        write(tmp_path / "target.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_bytes, write_numbers, write_folder])
def test_a_target_that_cannot_be_created_is_reported(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/target': .*; check space and permissions"):
        write(tmp_path / "file" / "target")


@pytest.mark.parametrize("context", [replacing, replacing_folder])
def test_an_error_of_reading_inside_the_block_keeps_its_own_name(tmp_path, context):
    with pytest.raises(FileNotFoundError) as caught, context(tmp_path / "target"):
        (tmp_path / "missing input").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing input")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EIO, "Input/output error"),
        OSError("of a library, without a number"),
    ],
)
def test_an_error_that_is_not_known_to_be_of_writing_is_raised_as_it_is(tmp_path, error):
    with pytest.raises(OSError) as caught, replacing(tmp_path / "target"):
        raise error
    assert caught.value is error


def test_an_error_that_names_the_temporary_file_is_of_writing(tmp_path):
    denied = pytest.raises(OutputError, match="target': Permission denied")
    with denied, replacing(tmp_path / "target") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    with (
        pytest.raises(OutputError, match="target': Permission denied"),
        replacing_folder(tmp_path / "target") as folder,
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "model.xml"))


def test_a_block_that_fails_leaves_the_old_content(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert (tmp_path / "a.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_has_no_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, float("nan")], "b": {"c": (float("inf"), "x", None)}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None], "b": {"c": [None, "x", None]}}


def test_a_folder_is_replaced_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    rename = Path.rename

    def full(self, target):
        if target == tmp_path / "out" and (self / "new").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OutputError, match="No space left"), replacing_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "x.safetensors", {"a": np.arange(6).reshape(2, 3).T}, {"note": "b"})
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["a"], np.arange(6).reshape(2, 3).T)


def test_what_a_killed_process_leaves_of_arrays_is_known(tmp_path):
    """safetensors writes to a file with a name of its own, which nothing removed."""
    script = """
import os, sys
from pathlib import Path
import numpy as np
import safetensors.numpy
from dlsr.files import write_arrays

def killed(arrays, path, metadata):
    (Path(path).parent / ".tmp123").write_bytes(b"half")
    os.kill(os.getpid(), 9)

safetensors.numpy.save_file = killed
write_arrays(Path(sys.argv[1]), {"x": np.zeros(3)}, {})
"""
    target = tmp_path / "x.safetensors"
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == -9
    assert list(tmp_path.iterdir())
    remove_old(left_of(target), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_files_grow_where_there_are_no_locks(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    with growing(tmp_path / "a.csv") as file:
        file.write("x")
    with appending(tmp_path / "a.csv") as file:
        file.write(b"y")
    assert (tmp_path / "a.csv").read_text() == "xy"


def test_files_are_added_beside_others_of_their_name(tmp_path):
    folder = tmp_path / "new"
    assert add_file(folder, "a.png", b"one") == folder / "a.png"
    assert add_file(folder, "a.png", b"two") == folder / "a-2.png"
    assert add_file(folder, "a.png", b"three") == folder / "a-3.png"
    assert add_file(folder, "a.png", b"two") == folder / "a-2.png", "it is there already"
    assert add_file(folder, "bare", b"") == folder / "bare"
    assert [path.read_bytes() for path in sorted(folder.glob("a*"))] == [b"two", b"three", b"one"]
    long = add_file(folder, "ü" * 120 + ".png", b"long")
    assert long.read_bytes() == b"long"
    assert long.suffix == ".png"


def test_a_folder_to_replace_holds_nothing_else(tmp_path, monkeypatch):
    check_replaceable(tmp_path / "new", {"a"}, "an export")
    (tmp_path / "a").touch()
    (tmp_path / f".writing-{'0' * 32}-a").touch()
    check_replaceable(tmp_path, {"a"}, "an export")
    with pytest.raises(OutputError, match="is a file; give a folder for an export"):
        check_replaceable(tmp_path / "a", {"a"}, "an export")
    with pytest.raises(OutputError, match="holds other files, such as a; give a new folder"):
        check_replaceable(tmp_path, {"b"}, "an export")

    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*: Permission denied; check space and permissions"):
        check_replaceable(tmp_path, {"a"}, "an export")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_being_added_has_its_name_only_when_it_is_complete(tmp_path, monkeypatch, links):
    """A killed process left an empty file of that name."""
    steps = []

    def watched(step, *paths):
        steps.append([path.read_bytes() for path in tmp_path.glob("a*")])
        if step is os.link and not links:
            raise OSError(errno.EPERM, "no links here")
        return step(*paths)

    for name in ("fsync", "link"):
        monkeypatch.setattr(os, name, partial(watched, getattr(os, name)))
    assert add_file(tmp_path, "a.png", b"one") == tmp_path / "a.png"
    assert steps == [[], []]
    assert add_file(tmp_path, "a.png", b"one") == tmp_path / "a.png"
    assert len(steps) == 2, "nothing is written again"
    assert add_file(tmp_path, "a.png", b"two") == tmp_path / "a-2.png"
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"two", b"one"]


def test_a_file_with_a_name_as_long_as_it_may_be_is_replaced(tmp_path):
    path = tmp_path / ("界" * 83 + ".jpg")
    with replacing(path) as temporary:
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_a_file_that_cannot_be_added_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        add_file(tmp_path / "file", "a.png", b"one")
    with files_no_larger_than(1000), pytest.raises(OutputError):
        add_file(tmp_path, "a.png", bytes(100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
