"""Fits and evaluations as runs in MLflow: parameters, losses, thresholds, metrics and files.

Needs the extra `mlflow`. A run is written when the work is done, so a tracking server that fails costs no fit. Runs of
one model share the tag `dlsr.model`, the start of the SHA-256 of its numbers.

Example:
    >>> from dlsr.mlflow import log_fit
    >>> log_fit("model", "sqlite:///mlflow.db")  # doctest: +SKIP
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlsr.artifact import Manifest, read_manifest
from dlsr.errors import MissingExtraError, OutputError, one_line
from dlsr.evaluation import Report
from dlsr.fitted_detector import FittedDetector
from dlsr.model_folder import MANIFEST
from dlsr.naming import distinct
from dlsr.streaming import in_groups

EXPERIMENT = "dlsr"
LONGEST = 500
"""Of a parameter's value: the most that every version of MLflow takes."""
AT_ONCE = 100
"""Values in a request: the most that MLflow takes of parameters."""

Values = Mapping[str, Any]


def check_tracking(uri: str, experiment: str = EXPERIMENT) -> None:
    """Check before long work that runs can be written.

    Raises:
        MissingExtraError: without MLflow.
        OutputError: if the tracking server or database cannot be used.
    """
    with _client(uri) as client:
        _experiment(client, experiment)


def log_fit(model: str | os.PathLike[str], uri: str, *, experiment: str = EXPERIMENT, run_id: str | None = None) -> str:
    """Write a run about the fit of a model: settings, losses of each epoch, threshold, numbers of images, `model.json`.

    Args:
        model: model directory.
        uri: of the tracking server or database, such as `http://host:5000` or `sqlite:///mlflow.db`.
        experiment: name; created if it does not exist.
        run_id: of a run to write to, which is left open; None for a new run.

    Returns:
        The ID of the run.

    Raises:
        ArtifactError: if the model cannot be read.
        MissingExtraError, OutputError: as `check_tracking`.
    """
    threshold, manifest = FittedDetector.load(model).threshold_, read_manifest(Path(model))
    settings, summary, encoder = manifest.settings, manifest.fit, manifest.encoder
    parameters = manifest.config.model_dump(exclude={"settings"})
    if encoder is not None:
        parameters |= encoder.model_dump(include={"stages", "pooling", "resizer", "precision", "decoding"})
    parameters |= {"score": settings.score, "preset": settings.preset}
    parameters |= {f"score.{name}": value for name, value in settings.scorer.model_dump().items()}
    metrics = {
        "threshold": threshold,
        "training_images": summary.training_images,
        "validation_images": summary.validation_images,
        "calibration_images": summary.calibration_images,
        "groups": summary.groups,
        "unreadable_images": len(summary.unreadable),
        "unlike_images": len(summary.unlike),
    }
    losses = [{"train_loss": one.train_loss, "validation_loss": one.validation_loss} for one in summary.log]
    with _client(uri) as client, _run(client, experiment, run_id) as run:
        _log(client, run, parameters, metrics, _tags(manifest) | {"dlsr.rate_check": summary.check.message})
        _log_steps(client, run, losses)
        client.log_artifact(run, str(Path(model, MANIFEST)))
        return run


def log_evaluation(
    model: str | os.PathLike[str],
    report: Report,
    uri: str,
    *,
    files: Iterable[Path] = (),
    experiment: str = EXPERIMENT,
    run_id: str | None = None,
) -> str:
    """Write a run about an evaluation of a model: metrics by OOD dataset, and the report.

    Args:
        model: model directory.
        report: see `dlsr.evaluate`.
        uri: as for `log_fit`.
        files: more artifacts, such as plots.
        experiment: as for `log_fit`.
        run_id: as for `log_fit`.

    Returns:
        The ID of the run.

    Raises:
        ArtifactError, MissingExtraError, OutputError: as `log_fit`.
    """
    tags = _tags(read_manifest(Path(model)))
    parameters = report.model_dump(include={"protocol", "score", "preset", "encoder", "seeds", "false_alarm_rate"})
    metrics = {
        "average_auroc": report.average_auroc,
        "false_alarms": report.false_alarms,
        "id_images": report.id_images,
    }
    for dataset in report.datasets:
        metrics |= {f"{name}.{dataset.name}": value for name, value in dataset.mean.items()}
    with _client(uri) as client, _run(client, experiment, run_id) as run:
        _log(client, run, parameters, metrics, tags)
        client.log_dict(run, report.model_dump(mode="json"), "evaluation.json")
        for path in files:
            client.log_artifact(run, str(path))
        return run


def _tags(manifest: Manifest) -> dict[str, str]:
    versions = {f"dlsr.version.{name}": version for name, version in manifest.versions.items()}
    return versions | {"dlsr.model": manifest.numbers_sha256[:16]}


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    """A client of MLflow, whose errors become one line."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it reports to its makers that it is used
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # of 7, it tries for minutes
    try:
        from mlflow import MlflowClient  # noqa: PLC0415 - an optional extra
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("mlflow", "mlflow") from None
    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError, ImportError) as error:
        reason = one_line(error)[:300]
        raise OutputError(f"cannot log to MLflow at '{uri}': {reason}; check the URI and its server") from error


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


@contextmanager
def _run(client: Any, experiment: str, run_id: str | None) -> Iterator[str]:
    """The ID of the run to write to; a new one is ended with the block."""
    if run_id is not None:
        yield run_id
        return
    run = str(client.create_run(_experiment(client, experiment)).info.run_id)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)


def _log(client: Any, run: str, parameters: Values, metrics: Values, tags: Values) -> None:
    from mlflow.entities import Param, RunTag  # noqa: PLC0415 - an optional extra

    given = [Param(name, str(value)[:LONGEST]) for name, value in parameters.items() if value is not None]
    for some in in_groups(given, AT_ONCE):
        client.log_batch(run, params=some)
    client.log_batch(run, tags=[RunTag(name, str(value)[:LONGEST]) for name, value in tags.items()])
    _log_steps(client, run, [metrics])


def _allowed(names: Iterable[str]) -> list[str]:
    """Names that MLflow takes, a different one for each."""
    plain = (re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII) for name in names)
    return distinct(plain, lambda name, number: f"{name}.{number}")


def _log_steps(client: Any, run: str, steps: Iterable[Values]) -> None:
    """Write metrics, the first with the step 1 if there are several."""
    from mlflow.entities import Metric  # noqa: PLC0415 - an optional extra

    now = int(1000 * time.time())
    every = (
        Metric(name, float(value), now, step)
        for step, values in enumerate(steps, start=1)
        for name, value in zip(_allowed(values), values.values(), strict=True)
    )
    for some in in_groups(every, AT_ONCE):
        client.log_batch(run, metrics=some)
