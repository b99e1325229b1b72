import re
import subprocess
import sys
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlsr.reports.bins import bar_edges, shares
from dlsr.reports.svg import ABOVE, Axis, Series, round_step, score_histogram

SCORES = arrays(np.float64, st.integers(1, 150), elements=st.floats(-1e300, 1e300))


class Picture:
    """What a histogram shows, read from its SVG."""

    def __init__(self, inside, outside, threshold, names=("inside", "outside")):
        self.text = score_histogram(Series(names[0], inside), Series(names[1], outside), threshold)
        self.root = ElementTree.fromstring(self.text)
        self.legend = [text.text for text in self.root.iterfind("svg/text[@x='2.6em']")]

    def ticks(self, side):
        """The labels of an axis and where they stand, in per cent from the left or from the bottom."""
        labels = self.root.iterfind(f".//text[@class='quiet {side}']")
        places = [(text.text, text.get("x" if side == "below" else "y")) for text in labels]
        ticks = [(float(label), float(place[:-1])) for label, place in places if label[0] in "-0123456789"]
        return [(value, place if side == "below" else 100 - place) for value, place in ticks]

    def bars(self, kind):
        """Edges and heights of bars in per cent of the plot's width and height."""
        data = self.root.find(f"svg/path[@class='{kind}']").get("d")
        start, tops = re.fullmatch(r"M(\S+) 100((?:V[\d.]+H[\d.]+)+)V100", data).groups()
        heights, rights = zip(*re.findall(r"V([\d.]+)H([\d.]+)", tops), strict=True)
        return np.array([start, *rights], float), 100 - np.array(heights, float)

    @property
    def threshold(self):
        """Where the line of the threshold stands, in per cent; None without one."""
        line = self.root.find("line[@class='threshold']")
        return None if line is None else float(line.get("x1")[:-1])


def values_at(places, ticks):
    """The values at places of an axis, by the straight line through its ticks."""
    return np.polyval(np.polyfit([place for _, place in ticks], [value for value, _ in ticks], 1), places)


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    return random.normal(size=50), random.normal(3, 1, size=40)


def test_the_bars_are_those_of_numpy_at_the_values_of_the_axes(scores):
    picture = Picture(*scores, 1.6)
    for kind, series in zip(("bars", "outline"), scores, strict=True):
        edges, heights = picture.bars(kind)
        every = np.concatenate(scores)
        counts, expected = np.histogram(series, len(heights), (every.min(), every.max()))
        assert values_at(edges, picture.ticks("below")) == pytest.approx(expected, abs=0.01)
        assert values_at(heights, picture.ticks("left")) == pytest.approx(100 * counts / len(series), abs=0.05)


def test_the_threshold_stands_at_its_value(scores):
    picture = Picture(*scores, 1.6)
    assert values_at(picture.threshold, picture.ticks("below")) == pytest.approx(1.6, abs=0.01)


@pytest.mark.parametrize(("threshold", "place"), [(-5.0, 0), (9.0, 100)])
def test_a_threshold_beside_the_bars_widens_the_axis(scores, threshold, place):
    picture = Picture(*scores, threshold)
    assert picture.threshold == place
    assert values_at(picture.threshold, picture.ticks("below")) == pytest.approx(threshold, abs=0.01)
    assert np.ptp(picture.bars("bars")[0]) > 50


def test_a_threshold_far_from_all_bars_is_only_named(scores):
    picture = Picture(*scores, 1e9)
    assert picture.threshold is None
    assert picture.legend[2] == "threshold 1e+09, far off this axis"
    assert np.ptp(picture.bars("bars")[0]) == 100


def test_names_and_counts_are_told_and_escaped(scores):
    names = ("<b>&amp;", "\"'</svg>")
    picture = Picture(*scores, 1.6, names)
    assert picture.legend == [f"{names[0]} (50)", f"{names[1]} (40)", "threshold 1.6"]
    assert picture.root.get("role") == "img"
    description = f"Histogram of scores: {', '.join(picture.legend)}"
    assert picture.root.get("aria-label") == picture.root.find("title").text == description


def test_colours_are_left_to_the_page_which_leaves_room_for_the_legend(scores):
    assert not re.search(r"(fill|stroke|style|color|font)=|#", Picture(*scores, 1.6).text)
    style = files("dlsr.reports").joinpath("page.html").read_text(encoding="utf-8")
    assert re.search(rf"\.histogram {{[^}}]* padding: {ABOVE:g}em ", style)


def test_an_outlier_is_counted_in_the_last_bar(scores):
    _, outside = scores
    picture = Picture(np.tile(outside, 20), np.append(outside, 1e30), 1.6)
    assert max(value for value, _ in picture.ticks("below")) < 10
    last = values_at(picture.bars("outline")[1][-1], picture.ticks("left"))
    assert last >= 100 / 41


@pytest.mark.parametrize("score", [0.0, 1e-300, 2.5, -7.0, 1e30])
def test_equal_scores_are_one_bar_around_the_threshold(score):
    picture = Picture(np.full(200, score), np.full(1, score), score)
    for kind in ("bars", "outline"):
        edges, heights = picture.bars(kind)
        (bar,) = np.flatnonzero(heights)
        assert picture.threshold == pytest.approx(edges[bar : bar + 2].mean(), abs=0.01)
        assert values_at(heights[bar], picture.ticks("left")) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1.0, -1.0, 1e6, 1e30])
def test_labels_of_scores_of_any_size_are_round(scores, scale):
    picture = Picture(*(scale * series for series in scores), 1.6 * scale)
    values = [value / scale for value, _ in picture.ticks("below")]
    assert sorted(values) == pytest.approx([*range(-2, 6)] if abs(scale) == 1 else [-2, 0, 2, 4])


def test_a_narrow_axis_far_from_zero_has_labels_that_differ_and_fit_a_phone(scores):
    picture = Picture(*(1234567 + series / 100 for series in scores), 1234567)
    assert [value for value, _ in picture.ticks("below")] == [1234567, 1234567.05]


def test_few_images_are_drawn_in_few_bars(scores):
    inside, outside = scores
    assert [len(Picture(inside, outside[:count], 1.6).bars("bars")[1]) for count in (1, 40)] == [10, 21]
    assert len(Picture(np.tile(inside, 20), np.tile(outside, 20), 1.6).bars("bars")[1]) == 60


@given(SCORES, SCORES, st.floats(-1e300, 1e300))
def test_any_finite_scores_are_drawn(inside, outside, threshold):
    picture = Picture(inside, outside, threshold)
    for kind in ("bars", "outline"):
        edges, heights = picture.bars(kind)
        assert 0 <= edges[0] < edges[-1] <= 100
        assert values_at(heights, picture.ticks("left")).sum() == pytest.approx(100, abs=1)
    ticks = picture.ticks("below")
    assert 1 <= len(dict(ticks)) == len(ticks) <= 9
    assert all(0 <= place <= 100 for _, place in ticks)
    assert picture.threshold is None or 0 <= picture.threshold <= 100


@given(SCORES, SCORES)
def test_bars_count_every_score_once(inside, outside):
    edges = bar_edges([inside, outside], 20)
    assert (np.diff(edges) > 0).all()
    assert shares(inside, edges).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("least", "step"), [(0.9, 1), (1, 1), (1.1, 2), (2.1, 5), (5.1, 10), (1000, 1000), (0.001, 0.001), (3e-300, 5e-300)]
)
def test_steps_are_one_two_or_five(least, step):
    assert round_step(least) == pytest.approx(step)


def test_an_axis_places_values_and_has_round_ticks():
    axis = Axis(-1.0, 3.0)
    assert [axis.place(value) for value in (-1, 0, 3)] == [0, 25, 100]
    assert axis.ticks(4) == [("-1", -1), ("0", 0), ("1", 1), ("2", 2), ("3", 3)]


def test_the_picture_needs_numpy_only():
    heavy = ("matplotlib", "scipy", "sklearn", "torch", "PIL")
    code = f"import sys, dlsr.reports.svg; print(*(name for name in {heavy!r} if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
