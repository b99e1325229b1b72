import numpy as np
import pytest

from dlsr.results import Result
from dlsr.serve.telemetry import Telemetry


@pytest.fixture
def telemetry():
    telemetry = Telemetry(window=50)
    telemetry.watch("old", np.arange(100) / 100)
    return telemetry


def scored(*scores, threshold=0.95):
    return [Result("a.png", score, 0.5, score > threshold) for score in scores]


def values(telemetry, waiting=0):
    text = telemetry.exposition(waiting).decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_scores_and_verdicts_are_counted(telemetry):
    telemetry.count("old", [*scored(0.1, 0.2, 2.0), Result("b.png", error="empty file")])
    found = values(telemetry, waiting=7)
    assert found['dlsr_images_total{verdict="id"}'] == 2
    assert found['dlsr_images_total{verdict="ood"}'] == 1
    assert found['dlsr_images_total{verdict="unreadable"}'] == 1
    assert found["dlsr_ood_share"] == pytest.approx(1 / 3)
    assert found["dlsr_score_count"] == 3
    assert found["dlsr_score_sum"] == pytest.approx(2.3)
    assert found["dlsr_waiting_images"] == 7


def test_the_share_of_ood_images_is_over_the_window(telemetry):
    telemetry.count("old", scored(*[2.0] * 50))
    telemetry.count("old", scored(*[0.1] * 40))
    assert values(telemetry)["dlsr_ood_share"] == pytest.approx(0.2)


def test_drift_needs_enough_images(telemetry):
    telemetry.count("old", scored(*np.linspace(0, 1, 19)))
    assert np.isnan(values(telemetry)["dlsr_drift_p_value"])
    telemetry.count("old", scored(0.5))
    assert values(telemetry)["dlsr_drift_p_value"] > 0.5


def test_shifted_scores_are_drift(telemetry):
    telemetry.count("old", scored(*[0.9] * 50))
    found = values(telemetry)
    assert found["dlsr_drift_p_value"] < 1e-6
    assert found["dlsr_drift_log10_martingale"] > 2


def test_a_new_model_restarts_all_statistics_of_scores(telemetry):
    telemetry.count("old", scored(*[0.9] * 50))
    telemetry.watch("new", np.arange(100.0))
    found = values(telemetry)
    assert found['dlsr_model_info{id="new"}'] == 1
    assert 'dlsr_model_info{id="old"}' not in found
    assert found["dlsr_score_count"] == 0
    assert found["dlsr_ood_share"] == 0
    assert found["dlsr_drift_log10_martingale"] == pytest.approx(0)
    assert np.isnan(found["dlsr_drift_p_value"])
    assert found['dlsr_images_total{verdict="id"}'] == 50  # images are counted whatever model scored them


def test_scores_of_a_replaced_model_are_not_counted_for_the_new_model(telemetry):
    telemetry.watch("new", np.arange(100.0))
    telemetry.count("old", scored(*[2.0] * 30))
    found = values(telemetry)
    assert found["dlsr_score_count"] == 0
    assert found["dlsr_ood_share"] == 0
    assert found["dlsr_drift_log10_martingale"] == pytest.approx(0)
    assert np.isnan(found["dlsr_drift_p_value"])
    assert found['dlsr_images_total{verdict="ood"}'] == 30


def test_the_martingale_restarts_so_that_memory_is_bounded(telemetry, monkeypatch):
    monkeypatch.setattr("dlsr.serve.telemetry.STREAM", 30)
    telemetry.count("old", scored(*[0.9] * 30))
    before = values(telemetry)["dlsr_drift_log10_martingale"]
    telemetry.count("old", scored(0.9))
    assert values(telemetry)["dlsr_drift_log10_martingale"] < before / 2
