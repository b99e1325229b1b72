"""The parts of `benchmarks/install.py` that install nothing."""

import pytest

from dlsr import open_images
from install import greatest_difference, markdown, sizes, write_images

ROW = {
    "extras": "serve,fast",
    "engine": "openvino",
    "megabytes": 1234.4,
    "largest": {"openvino": 200.4, "numpy": 75.0},
    "download_megabytes": 126.0,
    "download_seconds": 18.2,
    "install_seconds": 16.6,
    "help_seconds": 0.274,
    "score_seconds": 0.876,
    "difference": 1.06e-6,
}


def test_differences_are_relative_to_the_score_or_to_the_spread():
    expected = {"a": -1.0, "b": 1.0, "c": 100.0}
    spread = 47.14
    assert greatest_difference(expected, expected) == 0
    assert greatest_difference(expected | {"c": 101.0}, expected) == pytest.approx(1 / 100)
    assert greatest_difference(expected | {"a": 0.0}, expected) == pytest.approx(1 / spread, rel=1e-3)
    assert greatest_difference(dict(reversed(expected.items())), expected) == 0


def test_scores_of_other_images_are_not_compared():
    with pytest.raises(ValueError, match="other images"):
        greatest_difference({"a": 1.0}, {"a": 1.0, "b": 2.0})


def test_sizes_are_those_of_packages_with_their_libraries(tmp_path):
    for path, kilobytes in {"numpy/a.py": 10, "numpy/core/b.so": 2000, "numpy.libs/c.so": 1000, "six.py": 100}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"\1" * kilobytes * 1000)
    found = sizes(tmp_path)
    assert found.keys() == {"numpy", "six.py"}
    assert found["numpy"] == pytest.approx(3.01, abs=0.05)
    assert found["six.py"] == pytest.approx(0.1, abs=0.01)


def test_an_equal_share_of_each_source_is_written(tmp_path, image_folder, odd_folder):
    (tmp_path / "chosen").mkdir()
    write_images([image_folder, odd_folder], 8, tmp_path / "chosen")
    names = [path.name[0] for path in sorted((tmp_path / "chosen").iterdir())]
    assert names == ["0"] * 4 + ["1"] * 4
    assert len(open_images(tmp_path / "chosen")) == 8


def test_the_table_has_a_row_for_each_set():
    table = markdown(
        {"command": "python benchmarks/install.py", "images": 1000, "rows": [ROW, ROW | {"extras": "none"}],
         "python": "3.11.7", "processors": 2}
    )  # fmt: skip
    assert table.startswith("`python benchmarks/install.py`\n")
    assert "of 1,000 scores" in table
    assert "| `serve,fast` | openvino | 1,234 MB | 126 MB | 18 s | 17 s | 0.88 s | 0.27 s | 1.1e-06 |\n" in table
    assert "| none | openvino |" in table
    assert "openvino 200, numpy 75 |\n" in table
