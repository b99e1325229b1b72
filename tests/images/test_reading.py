"""Only regular files are read, and never more than a limit."""

import os
import socket
import threading
from pathlib import Path

import pytest

from dlsr import ImageError, ImageTooLargeError, InputError, files, open_images
from dlsr.images.reading import MAX_FILE_BYTES, read_file


def in_time(function, *arguments, seconds=5):
    """The error of a call in a thread, which must end in time."""
    raised = []

    def call():
        try:
            function(*arguments)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return raised[0]


def test_a_fifo_is_no_image(tmp_path):
    """Reading it waited for a writer for ever."""
    os.mkfifo(tmp_path / "a.jpg")
    (item,) = open_images(tmp_path).items
    assert str(in_time(item.read)) == "not a regular file"
    for name in ("b.jpg", "b.tar"):
        os.mkfifo(tmp_path / name)
        error = in_time(open_images, tmp_path / name)
        assert isinstance(error, InputError)
        assert "not a regular file" in str(error)


def test_a_fifo_that_takes_the_place_of_a_file_is_no_image(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.jpg")
    regular = Path(__file__).stat()
    monkeypatch.setattr(files.Path, "stat", lambda path: regular)
    assert str(in_time(read_file, tmp_path / "a.jpg")) == "not a regular file"


def test_devices_sockets_and_folders_are_no_images(tmp_path):
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        (tmp_path / "folder.jpg").mkdir()
        for name in ("zero.jpg", "socket.jpg", "folder.jpg"):
            with pytest.raises(ImageError, match="not a regular file"):
                read_file(tmp_path / name)


def test_files_over_the_limit_are_not_read(tmp_path):
    path = tmp_path / "sparse.jpg"
    path.touch()
    os.truncate(path, 100 * 10**9)
    with pytest.raises(ImageTooLargeError, match=f"100000000000 bytes are over the limit of {MAX_FILE_BYTES}"):
        read_file(path)


def test_a_name_that_cannot_be_is_an_error_of_the_image():
    for name in ("a\0.jpg", "a\ud800.jpg"):
        with pytest.raises(ImageError):
            read_file(name)
