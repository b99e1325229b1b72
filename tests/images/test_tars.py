"""Each image of a tar is read right, or is an image that fails with the reason."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from dlsr import DlsrError, ImageError, ImageTooLargeError, InputError, open_images
from dlsr.images.tars import list_members
from dlsr.scale.parts import items_of, plan
from dlsr.scale.run import _items_and_damage


def readers(path):
    """The images of a tar as one process reads them, and as the workers of a cluster do."""

    def local(path):
        return open_images(path).items

    def in_parts(path):
        return [item for part in plan(str(path), 3) for item in _items_and_damage(part)]

    return [local(path), in_parts(path)]


def outcomes(items):
    """What each image gives, by name: its bytes, or the reason why it has none."""
    found = {}
    for item in items:
        name = item.name.rsplit(".tar/", 1)[-1]
        assert name not in found
        try:
            found[name] = item.read()
        except ImageError as error:
            found[name] = str(error)
    return found


def contents_of(path):
    local, in_parts = map(outcomes, readers(path))
    assert list(local.values()) == list(in_parts.values())
    return local


@pytest.fixture
def contents():
    """Some files of different length."""
    random = np.random.default_rng(0)
    return {f"a/{i}.png": random.bytes(400 * i + 1) for i in range(8)}


def add(tar, name, content=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    tar.addfile(member, io.BytesIO(content))


def written(path, contents, mode="w", **options):
    with tarfile.open(path, mode, **options) as tar:
        for name, content in contents.items():
            add(tar, name, content)
    return path


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix"])
def test_holes_of_sparse_members_are_filled(tmp_path, form):
    """The data was read without its holes."""
    random = np.random.default_rng(0)
    for i in range(3):
        with (tmp_path / f"{i}.png").open("wb") as file:
            for block in range(40 * i):
                file.seek(200_000 * block)
                file.write(random.bytes(5000))
            file.truncate(200_000 * 40 * i + 300_000)
    names = [f"{i}.png" for i in range(3)]
    command = ["tar", "-S", *f"--format={form}".split(), "-C", tmp_path, "-cf", tmp_path / "x.tar", *names]
    subprocess.run(command, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 2_000_000
    found = contents_of(tmp_path / "x.tar")
    assert list(found) == names
    assert all(found[name] == (tmp_path / name).read_bytes() for name in names)


def test_links_are_followed_within_the_tar(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "early.png", type=tarfile.SYMTYPE, linkname="./a/1.png")
        add(tar, "./a/1.png", b"one")
        add(tar, "a/hard.png", type=tarfile.LNKTYPE, linkname="./a/1.png")
        add(tar, "a/soft.png", type=tarfile.SYMTYPE, linkname="hard.png")
        add(tar, "b/up.png", type=tarfile.SYMTYPE, linkname="../a/soft.png")
        add(tar, "data", b"two")
        add(tar, "named.png", type=tarfile.SYMTYPE, linkname="data")
        add(tar, "out.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "round.png", type=tarfile.SYMTYPE, linkname="round.png")
        add(tar, "fifo.png", type=tarfile.FIFOTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "c", type=tarfile.SYMTYPE, linkname="a")
    assert contents_of(tmp_path / "x.tar") == {
        "early.png": b"one",
        "./a/1.png": b"one",
        "a/hard.png": b"one",
        "a/soft.png": b"one",
        "b/up.png": b"one",
        "named.png": b"two",
        "out.png": "a link to /etc/passwd, which is not in the tar",
        "round.png": "a link to round.png, which is not in the tar",
        "fifo.png": "not a regular file",
    }
    assert open_images(tmp_path / "x.tar").ignored == ["data", "c"]


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tbz2"])
def test_compression_is_told_by_content(tmp_path, contents, kind, suffix):
    """Members of xz and bzip2 under `.tar` were listed, and then unreadable."""
    local, in_parts = map(outcomes, readers(written(tmp_path / f"x.{suffix}", contents, kind)))
    assert local == contents
    assert list(in_parts.values()) == list(contents.values())


@pytest.mark.parametrize("size", [10**12, -100, -(10**6), 2**40])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sizes_that_cannot_be_are_errors_of_the_image(tmp_path, size, format):
    path = written(tmp_path / "x.tar", {"0.png": b"zero"}, format=format)
    raw = path.read_bytes()[:1024]
    member = tarfile.TarInfo("1.png")
    member.size = size
    raw += member.tobuf(tarfile.GNU_FORMAT) if format == tarfile.GNU_FORMAT else with_pax(size=str(size))
    path.write_bytes(raw + written(tmp_path / "y.tar", {"2.png": b"two"}).read_bytes())
    found = contents_of(path)
    assert found["0.png"] == b"zero"
    assert isinstance(found["1.png"], str)
    assert len(found) == 3
    assert found.get("2.png", b"two") == b"two"


def with_pax(**attributes):
    """A member `1.png` with extended attributes, without its content."""
    member = tarfile.TarInfo("1.png")
    member.pax_headers = attributes
    return member.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "attributes",
    [
        {"size": "many"},
        {"mtime": "nan"},
        {"mtime": "1e999"},
        {"size": "9" * 30},
        {"size": "9" * 5000},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
        {"GNU.sparse.map": "0,9,zz", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "0,99999999999,1,5", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "-5,5", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "500,5", "GNU.sparse.size": "100"},
        {"uid": "\x00\xff"},
    ],
)
def test_bad_numbers_of_extended_attributes_cost_one_image_or_are_told(tmp_path, attributes):
    before = written(tmp_path / "x.tar", {"0.png": b"zero"}).read_bytes()[:1024]
    after = written(tmp_path / "y.tar", {"2.png": b"two"}).read_bytes()
    (tmp_path / "x.tar").write_bytes(before + with_pax(**attributes) + after)
    found = contents_of(tmp_path / "x.tar")
    assert found["0.png"] == b"zero"
    told = [reason for reason in found.values() if isinstance(reason, str)]
    assert found.get("2.png") == b"two" or "the rest of this tar cannot be read" in told[-1]
    (tmp_path / "first.tar").write_bytes(with_pax(**attributes) + after)
    try:
        contents_of(tmp_path / "first.tar")
    except InputError as error:
        assert "cannot read" in str(error)


def test_a_header_that_claims_to_be_huge_is_damage(tmp_path):
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**12
    path = written(tmp_path / "x.tar", {"0.png": b"zero"})
    path.write_bytes(path.read_bytes()[:1024] + header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    found = contents_of(path)
    assert list(found.values()) == [
        b"zero",
        "the rest of this tar cannot be read: a header claims to have 1000000000000 bytes",
    ]


def test_many_nested_headers_are_damage(tmp_path):
    header = tarfile.TarInfo("long")
    header.type = tarfile.GNUTYPE_LONGNAME
    path = written(tmp_path / "x.tar", {"0.png": b"zero"})
    path.write_bytes(path.read_bytes()[:1024] + header.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024))
    for items in readers(path):
        zero, damage = outcomes(items).values()
        assert zero == b"zero"
        assert "the rest of this tar cannot be read: maximum recursion depth exceeded" in damage


def test_members_after_the_end_of_a_tar_are_told(tmp_path, contents):
    path = written(tmp_path / "x.tar", contents)
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    *found, damage = contents_of(path).values()
    assert found == list(contents.values())
    assert damage == "the rest of this tar cannot be read: there is data after its end mark"


def test_a_tar_that_is_cut_is_told(tmp_path, contents):
    path = written(tmp_path / "x.tar", contents)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    whole = path.read_bytes()
    for cut, reason in ((members[5].offset, "no end mark"), (members[5].offset_data + 100, "unexpected end of data")):
        path.write_bytes(whole[:cut])
        found = contents_of(path)
        assert [found[name] == content for name, content in list(contents.items())[:5]] == [True] * 5
        assert reason in list(found.values())[-1]


def test_members_of_one_name_are_told_apart(tmp_path):
    path = written(tmp_path / "x.tar", {"a.png": b"1", "b.png": b"2"})
    with tarfile.open(path, "a") as tar:
        add(tar, "a.png", b"3")
    assert contents_of(path) == {"a.png": b"1", "b.png": b"2", "a (2).png": b"3"}


def test_names_that_are_not_utf8_are_written_as_utf8(tmp_path):
    path = written(tmp_path / "x.tar", {"caf\udce9.png": b"x", "caf\udce9.txt": b""}, format=tarfile.GNU_FORMAT)
    assert contents_of(path) == {r"caf\udce9.png": b"x"}
    assert open_images(path).ignored == [r"caf\udce9.txt"]


def test_a_name_with_a_null_byte_is_written_so_that_files_can_be_named_after_it(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = 1, {"path": "a\0b.png"}
        tar.addfile(info, io.BytesIO(b"x"))
    assert contents_of(path) == {r"a\x00b.png": b"x"}


def test_large_members_are_refused(tmp_path, monkeypatch, contents):
    monkeypatch.setattr("dlsr.images.reading.MAX_FILE_BYTES", 1000)
    items = open_images(written(tmp_path / "x.tar", contents)).items
    assert items[2].read() == contents["a/2.png"]
    with pytest.raises(ImageTooLargeError, match="1201 bytes are over the limit of 1000"):
        items[3].read()


def damaged(raw, random):
    """A tar with a random damage: bytes changed, a block zeroed, bytes lost or added, or cut."""
    raw, kind = bytearray(raw), random.integers(5)
    place = int(random.integers(len(raw)))
    if kind == 0:
        for _ in range(random.integers(1, 30)):
            raw[random.integers(len(raw))] = random.integers(256)
    elif kind == 1:
        start = place // 512 * 512
        raw[start : start + 512] = bytes(512)
    elif kind == 2:
        del raw[place : place + int(random.integers(1, 2000))]
    elif kind == 3:
        raw[place:place] = random.bytes(random.integers(1, 2000))
    else:
        del raw[place:]
    return bytes(raw)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_randomly_damaged_tars_lose_no_image_without_a_word(tmp_path, contents, compress):
    random = np.random.default_rng(0)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for name, content in contents.items():
            add(tar, name, content)
            add(tar, name.replace(".png", "-linked.png"), type=tarfile.LNKTYPE, linkname=name)
            add(tar, "b" * 150 + name, content, pax_headers={"mtime": "12.5"})
    whole, refused, told = (tmp_path / "whole.tar").read_bytes(), 0, 0
    expected = outcomes(open_images(tmp_path / "whole.tar").items)
    assert len(expected) == 24
    for i in range(100):
        path = tmp_path / f"{i}.tar"
        path.write_bytes(damaged(compress(whole), random))
        try:
            items = open_images(path).items
        except DlsrError as error:
            assert "cannot read" in str(error) or "no image in" in str(error)
            refused += 1
            continue
        reasons = []
        for item in items:
            try:
                item.read()
            except ImageError as error:
                reasons.append(str(error))
        told += bool(reasons)
        ignored = len(open_images(path).ignored)
        assert len(items) + ignored >= len(expected) or "the rest of this tar cannot be read" in reasons[-1]
        in_parts = [item for part in plan(str(path), 50) for item in items_of(part)]
        assert len(in_parts) == len(items)
    if compress in (bytes, gzip.compress):  # the others have a single block, which is lost as a whole
        assert refused < 50
        assert told > 5


def test_an_empty_tar_has_no_damage():
    assert list_members(io.BytesIO(bytes(10240))).damage is None
