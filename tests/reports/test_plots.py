import numpy as np
import pytest
from PIL import Image

from dlsr import OutputError
from dlsr.reports.plots import save_roc, score_histogram


@pytest.fixture
def scores():
    random = np.random.default_rng(0)
    return random.normal(size=500), random.normal(3, 1, size=200)


def test_the_histogram_names_datasets_and_sizes_and_marks_the_threshold(scores):
    inside, outside = scores
    (axes,) = score_histogram(inside, {"flowers": outside}, 1.6).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["ID (500)", "flowers (200)", "threshold"]
    assert any(set(line.get_xdata()) == {1.6} for line in axes.lines)


def test_an_outlier_does_not_stretch_the_histogram(scores):
    inside, outside = scores
    (axes,) = score_histogram(inside, {"flowers": np.append(outside, 1e9)}, 1.6).axes
    assert axes.get_xlim()[1] < 100


@pytest.mark.parametrize("inside", [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0]])
def test_the_histogram_of_few_scores_has_them_all(inside):
    (axes,) = score_histogram(np.array(inside), {"flowers": np.array([5.0])}, 1.6).axes
    assert (axes.dataLim.xmin, axes.dataLim.xmax) == pytest.approx((0, 5))


def test_the_roc_curve_is_written_as_a_picture(scores, tmp_path):
    save_roc(tmp_path / "roc.png", scores[0], {"flowers": scores[1]})
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10


def test_a_plot_that_cannot_be_written_is_an_error(scores, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_roc(tmp_path / "file" / "roc.png", scores[0], {"flowers": scores[1]})
