import pytest

from dlsr.errors import InputError, SettingsError
from dlsr.images.groups import group_labels

NAMES = ["a/part1_0.png", "a/part1_1.png", "b/part2_0.png", "b/part1_0.png"]


def test_groups_are_folders():
    assert group_labels(NAMES, "folder") == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        (r"part\d", ["part1", "part1", "part2", "part1"]),
        (r"part(\d)_", ["1", "1", "2", "1"]),
        (r"^(.)/part(\d)", ["a/1", "a/1", "b/2", "b/1"]),
        (r"_(0)?", ["0", "", "0", "0"]),
    ],
)
def test_groups_are_what_an_expression_matches(pattern, labels):
    assert group_labels(NAMES, pattern) == labels


def test_groups_are_read_from_a_file(tmp_path):
    file = tmp_path / "groups.csv"
    rows = [f"{name},patient {i // 2}" for i, name in enumerate(NAMES)]
    file.write_text("\n".join(["path,group", *reversed(rows), "another.png,patient 7"]), encoding="utf-8-sig")
    assert group_labels(NAMES, str(file)) == ["patient 0", "patient 0", "patient 1", "patient 1"]


def test_an_expression_that_leaves_images_without_a_group_is_refused():
    with pytest.raises(InputError, match=r"no group to 1 of 4 images, the first is b/part2_0.png"):
        group_labels(NAMES, "part1")
    with pytest.raises(InputError, match=r"no group to 4 of 4 images"):
        group_labels(NAMES, "video")
    with pytest.raises(SettingsError, match=r"is no regular expression: .*position"):
        group_labels(NAMES, "part(")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,group\na/part1_0.png,1\n", "no group to 3 of 4 images, the first is a/part1_1.png"),
        ("path,group\na/part1_0.png\n", "no group to 4 of 4 images"),
        ("file,group\n", "has no column 'path'"),
        ("", "has no column 'path'"),
    ],
)
def test_a_file_that_misses_images_or_columns_is_refused(tmp_path, content, message):
    file = tmp_path / "groups.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        group_labels(NAMES, str(file))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*missing\.csv"):
        group_labels(NAMES, str(tmp_path / "missing.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(InputError, match=r"cannot read .*binary\.csv"):
        group_labels(NAMES, str(tmp_path / "binary.csv"))
