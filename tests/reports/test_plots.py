import sys
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_curve

from dlsr import MissingExtraError, OutputError
from dlsr.reports import plots
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


def test_names_are_drawn_as_they_are(scores, tmp_path):
    inside, outside = scores
    odd = {"$5_$ or $x": outside, "_hidden": outside}
    figure = score_histogram(inside, odd, 1.6)
    assert any("_hidden (200)" in text.get_text() for text in figure.axes[0].get_legend().get_texts())
    plots.save_figure(figure, tmp_path / "histogram.png")
    save_roc(tmp_path / "roc.png", inside, odd)


def test_an_outlier_does_not_stretch_the_histogram(scores):
    inside, outside = scores
    (axes,) = score_histogram(inside, {"flowers": np.append(outside, 1e9)}, 1.6).axes
    assert axes.get_xlim()[1] < 100


@pytest.mark.parametrize("inside", [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0]])
def test_the_histogram_of_few_scores_has_them_all(inside):
    (axes,) = score_histogram(np.array(inside), {"flowers": np.array([5.0])}, 1.6).axes
    assert (axes.dataLim.xmin, axes.dataLim.xmax) == pytest.approx((0, 5))


def test_the_histogram_of_equal_scores_is_one_bar():
    (axes,) = score_histogram(np.full(20, 2.5), {"flowers": np.full(3, 2.5)}, 2.5).axes
    (bar,) = (bar for bar in axes.patches if hasattr(bar, "get_height") and bar.get_height() > 0)
    assert bar.get_x() < 2.5 < bar.get_x() + bar.get_width()


def test_the_roc_curve_is_that_of_scikit_learn(scores, tmp_path, monkeypatch):
    inside, outside = (np.round(series, 1) for series in scores)  # with ties
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    save_roc(tmp_path / "roc.png", inside, {"flowers": outside})
    curve = figures[0].axes[0].lines[0]
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    fpr, tpr, _ = roc_curve(truth, np.concatenate([inside, outside]), drop_intermediate=False)
    assert curve.get_xdata() == pytest.approx(fpr)
    assert curve.get_ydata() == pytest.approx(tpr)


def test_the_roc_curve_is_written_as_a_picture(scores, tmp_path):
    save_roc(tmp_path / "roc.png", scores[0], {"flowers": scores[1]})
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10


def test_a_plot_that_cannot_be_written_is_an_error(scores, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_roc(tmp_path / "file" / "roc.png", scores[0], {"flowers": scores[1]})


@pytest.mark.parametrize("module", ["plots", "drift", "evaluation"])
def test_without_matplotlib_the_error_names_the_extra(module, monkeypatch):
    for name in ("plots", module):
        monkeypatch.delitem(sys.modules, f"dlsr.reports.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed; run: pip install 'dlsr\[fit\]'"):
        import_module(f"dlsr.reports.{module}")
