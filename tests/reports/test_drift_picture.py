import numpy as np
import pytest
from PIL import Image

from dlsr import OutputError
from dlsr.calibration.two_samples import Sample
from dlsr.reports.drift import drift_figure, save_drift


@pytest.fixture
def samples():
    random = np.random.default_rng(0)

    def sample(shift, kinds):
        properties = {"brightness": random.random(50) + shift, "file type": np.array(kinds * 25), "width": np.ones(50)}
        return Sample(np.zeros((50, 2), np.float32), properties)

    return sample(0, ["JPEG", "JPEG"]), sample(0.5, ["JPEG", "PNG"])


@pytest.fixture
def scores():
    return np.random.default_rng(1).normal(size=80)


def names(figure):
    return [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]


def test_the_scores_and_what_moved_are_shown(scores, samples):
    figure = drift_figure(scores, scores, samples, ["brightness", "file type", "width"])
    assert names(figure) == ["score (larger = more OOD)", "brightness", "file type", "width"]
    kinds = figure.axes[2]
    assert [label.get_text() for label in kinds.get_xticklabels()] == ["JPEG", "PNG"]
    assert [bar.get_height() for bar in kinds.patches] == [100, 0, 50, 50]


def test_without_reference_images_only_the_scores_are_shown(scores):
    assert names(drift_figure(scores, scores, None, [])) == ["score (larger = more OOD)"]


def test_the_legend_tells_the_filled_earlier_values_from_the_outlined_later_ones(scores, samples):
    figure = drift_figure(scores, scores, samples, [])
    (legend,) = figure.legends
    filled = {
        text.get_text(): handle.get_fill() for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
    }
    assert filled == {"before": True, "now": False}


def test_the_picture_is_written(scores, samples, tmp_path):
    save_drift(tmp_path / "drift.png", scores, scores + 1, samples, ["brightness"])
    with Image.open(tmp_path / "drift.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_drift(tmp_path / "file" / "drift.png", scores, scores, None, [])
