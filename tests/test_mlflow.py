"""Runs in MLflow, in a database on disk."""

import json
import sys

import pytest

from dlsr import Detector, MissingExtraError, OutputError
from dlsr.artifact import read_manifest
from dlsr.mlflow import _allowed

ENCODER = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch"]


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """A database in an empty working directory, where MLflow keeps artifacts."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    (tmp_path / "tracked").mkdir()
    monkeypatch.chdir(tmp_path / "tracked")
    return f"sqlite:///{tmp_path}/tracked/mlflow.db"


def runs(uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dlsr")
    return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


@pytest.mark.slow
def test_a_fit_is_a_run(run, uri, image_folder, tmp_path):
    given = ["--score", "residual", "--epochs", "3", "--width", "32", "--group-by", "none", "--mlflow", uri]
    done = run("fit", image_folder, "-o", tmp_path / "model", *ENCODER, *given)
    assert done.status == 0, done.err
    client, (logged,) = runs(uri)
    assert f"logged as run {logged.info.run_id} at {uri}" in done.err
    assert logged.info.status == "FINISHED"
    detector = Detector.load(tmp_path / "model")
    summary = detector.fit_summary_
    parameters, metrics = logged.data.params, logged.data.metrics
    assert parameters["encoder"] == "test_resnet"
    assert parameters["score"] == "residual"
    assert parameters["score.width"] == "32"
    assert parameters["pooling"] == detector.extractor_.spec.pooling
    assert parameters["false_alarm_rate"] == "0.05"
    assert metrics["threshold"] == pytest.approx(detector.threshold_)
    assert metrics["calibration_images"] == summary.calibration_images
    losses = sorted((one.step, one.value) for one in client.get_metric_history(logged.info.run_id, "train_loss"))
    assert losses == [(entry.epoch, pytest.approx(entry.train_loss)) for entry in summary.log]
    assert len(losses) >= 3
    assert [one.path for one in client.list_artifacts(logged.info.run_id)] == ["model.json"]


def test_an_evaluation_is_a_run_of_the_same_model(run, uri, model, image_folder, odd_folder, tmp_path):
    from dlsr.mlflow import log_fit

    first = log_fit(model, uri)
    given = [
        "--id",
        image_folder,
        "--ood",
        f"a flower: é={odd_folder}",
        "-o",
        tmp_path / "out",
        "--mlflow",
        uri,
        "--json",
    ]
    done = run("evaluate", model, *given, "--backend", "torch")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    client, (fitted, evaluated) = runs(uri)
    assert fitted.info.run_id == first
    assert fitted.data.tags["dlsr.model"] == evaluated.data.tags["dlsr.model"]
    assert read_manifest(model).numbers_sha256.startswith(fitted.data.tags["dlsr.model"])
    (dataset,) = report["datasets"]
    assert evaluated.data.metrics["auroc.a flower_ _"] == pytest.approx(dataset["mean"]["auroc"])
    assert evaluated.data.metrics["average_auroc"] == pytest.approx(report["average_auroc"])
    artifacts = {one.path for one in client.list_artifacts(evaluated.info.run_id)}
    assert artifacts == {"evaluation.json", "histogram.png", "roc.png"}


def test_names_that_mlflow_does_not_take_stay_apart():
    assert _allowed(["auroc.数字", "auroc.图片", "a+b", "a_b", "auroc"]) == [
        "auroc.__",
        "auroc.__.2",
        "a_b",
        "a_b.2",
        "auroc",
    ]


def test_an_open_run_is_written_to_and_stays_open(uri, model):
    from mlflow import MlflowClient

    from dlsr.mlflow import EXPERIMENT, log_fit

    client = MlflowClient(tracking_uri=uri)
    opened = client.create_run(client.create_experiment(EXPERIMENT)).info.run_id
    assert log_fit(model, uri, run_id=opened) == opened
    logged = client.get_run(opened)
    assert logged.info.status == "RUNNING"
    assert logged.data.params["score"] == "local"


def test_a_server_that_cannot_be_used_is_one_line_before_any_work(run, uri, image_folder, tmp_path):
    for bad in ("sqlite:////proc/none/x.db", "nonsense://x", "http://127.0.0.1:9"):
        done = run("fit", image_folder, "-o", tmp_path / "model", *ENCODER, "--mlflow", bad)
        assert f"cannot log to MLflow at '{bad}'" in done.error
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_marked(uri, model, monkeypatch):
    from mlflow import MlflowClient

    from dlsr.mlflow import log_fit

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(OutputError, match="no space left"):
        log_fit(model, uri)
    assert runs(uri)[1][0].info.status == "FAILED"


def test_without_mlflow_it_is_said_what_to_install(run, monkeypatch, image_folder, tmp_path):
    from dlsr.mlflow import check_tracking

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[mlflow\]'"):
        check_tracking("sqlite://")
    done = run("fit", image_folder, "-o", tmp_path / "model", "--mlflow", "sqlite:///x.db")
    assert "dlsr[mlflow]" in done.error
