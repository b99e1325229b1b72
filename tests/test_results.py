"""What `Detector.detect` returns."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from dlsr import Detector, MissingExtraError, SettingsError, UnreadableImagesWarning, open_images
from dlsr.calibration.fdr import rejected


@pytest.fixture(scope="module")
def detector(model):
    return Detector.load(model, backend="torch")


@pytest.fixture
def mixed(image_folder, odd_folder, tmp_path):
    """Three images, one that cannot be read, and two that are out of distribution."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    inside = [item.name for item in open_images(image_folder).items[:3]]
    outside = [item.name for item in open_images(odd_folder).items[:2]]
    return [*inside, str(tmp_path / "broken.png"), *outside]


@pytest.fixture
def results(detector, mixed):
    with pytest.warns(UnreadableImagesWarning, match="broken"):
        return detector.detect(mixed)


def test_one_pass_gives_all_answers(detector, mixed, results, monkeypatch):
    with pytest.warns(UnreadableImagesWarning):
        np.testing.assert_array_equal(results.scores, detector.score_samples(mixed))
        np.testing.assert_array_equal(results.p_values, detector.p_values(mixed))
        np.testing.assert_array_equal(results.verdicts, detector.predict(mixed))
    passes = []
    encode = type(detector.extractor_).encode_chunks
    monkeypatch.setattr(type(detector.extractor_), "encode_chunks", lambda *a, **k: passes.append(1) or encode(*a, **k))
    with pytest.warns(UnreadableImagesWarning):
        detector.detect(mixed)
    assert len(passes) == 1


def test_arrays_and_rows_say_the_same(detector, mixed, results):
    assert results.scores.shape == results.p_values.shape == results.verdicts.shape == (6,)
    assert results.layers.shape == (6, 5)
    assert results.errors[3] == "not an image, or of an unknown format"
    assert [error is None for error in results.errors] == [True] * 3 + [False] + [True] * 2
    assert np.isnan(results.scores).tolist() == [error is not None for error in results.errors]
    assert results.verdicts[3] == -1
    assert list(results) == list(detector.results(mixed))
    last = results[-1]
    assert (last.score, last.is_ood) == (results.scores[-1], results.verdicts[-1] == 1)
    assert last.top_layer == results.layer_names[int(results.layers[-1].argmax())]
    assert results[4:] == [results[4], results[5]]
    assert results.unreadable == {mixed[3]: results.errors[3]}
    assert results.ood == (results.verdicts == 1).sum()
    np.testing.assert_array_equal(results.scores[~np.isnan(results.scores)] > results.threshold,
                                  results.verdicts[results.verdicts >= 0] == 1)  # fmt: skip


def test_chunks_are_joined_in_order(detector, image_folder, monkeypatch):
    whole = detector.detect(image_folder)
    monkeypatch.setattr("dlsr.encoding.pipeline.CHUNK", 7)
    chunked = detector.detect(image_folder)
    assert chunked.paths == whole.paths
    np.testing.assert_allclose(chunked.scores, whole.scores, atol=1e-5)


def test_print_shows_counts_and_shapes(results):
    text = repr(results)
    assert text.startswith(f"Results of 6 images: {results.ood} out of distribution, 1 unreadable")
    assert "shape (6,)" in text
    assert "shape (6, 5), stage 0" in text


def test_a_notebook_shows_a_table_with_escaped_names(detector, photographs, tmp_path):
    path = tmp_path / "<b>&.png"
    photographs[0].save(path)
    page = detector.detect([path])._repr_html_()
    assert page.count("<tr>") == 2
    assert "&lt;b&gt;&amp;.png" in page


def test_csv_is_that_of_the_command_line(results, mixed, tmp_path):
    results.to_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == mixed
    assert (rows[3]["score"], rows[3]["error"]) == ("", results.errors[3])
    assert float(rows[0]["score"]) == results.scores[0]


def test_pandas(results, monkeypatch):
    frame = results.to_pandas()
    assert list(frame.columns)[:3] == ["path", "score", "p_value"]
    np.testing.assert_array_equal(frame["stage 2"], results.layers[:, 2])
    assert frame["error"].notna().sum() == 1
    assert frame[frame["is_ood"]]["path"].tolist() == [result.path for result in results if result.is_ood]
    assert frame.groupby("top_layer")["score"].mean().notna().all()
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[pandas\]"):
        results.to_pandas()


def test_verdicts_at_a_false_discovery_rate(detector, image_folder, odd_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [item.name for folder in (odd_folder, image_folder) for item in open_images(folder).items[:40]]
    with pytest.warns(UnreadableImagesWarning):
        plain = detector.detect([str(tmp_path / "broken.png"), *names])
    results = plain.at_fdr(0.9)
    assert 0 < results.ood < 80
    np.testing.assert_array_equal(results.verdicts[1:] == 1, rejected(plain.p_values[1:], 0.9))
    np.testing.assert_array_equal(results.verdicts[1:] == 1, plain.scores[1:] > results.threshold)
    assert results.verdicts[0] == -1
    assert [result.is_ood for result in results] == [None, *(results.verdicts[1:] == 1)]
    assert "at a false discovery rate of 90 %" in repr(results)
    assert "at a false-alarm rate of 5 %" in repr(plain)
    with pytest.raises(SettingsError, match="false discovery rate"):
        plain.at_fdr(1.0)


def test_no_image_or_every_image_may_be_rejected(results):
    every = replace(results, p_values=np.where(results.verdicts < 0, np.nan, 0.01)).at_fdr(0.1)
    none = replace(results, p_values=np.where(results.verdicts < 0, np.nan, 0.9)).at_fdr(0.1)
    assert every.verdicts.tolist() == [1, 1, 1, -1, 1, 1]
    assert none.verdicts.tolist() == [0, 0, 0, -1, 0, 0]
    readable = results.scores[results.verdicts >= 0]
    assert (readable > every.threshold).all()
    assert not (readable > none.threshold).any()
    assert np.isfinite([every.threshold, none.threshold]).all()
