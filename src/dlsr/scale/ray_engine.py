"""Scoring and encoding with Ray Data: parts are streamed to actors in bounded memory, and retried if a worker dies."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dlsr.artifact import read_manifest
from dlsr.detector import Detector
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import MissingExtraError, OutputError, SettingsError, one_line
from dlsr.runtime.backends import Backend
from dlsr.scale.parts import Part, digest_of, plan
from dlsr.scale.run import RunFolder
from dlsr.scale.tasks import PartDone, encode_part, encoded_images, score_part

ENCODED = "encoded"
"""Subfolder of a run for tables of encoded images: names, and keys in the feature store."""
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception): .+", re.MULTILINE)
"""An error in the tracebacks that Ray's errors hold; the first one is the cause of the others."""


@dataclass(frozen=True)
class RunSummary:
    """Counts of a run."""

    parts: int
    """All parts, finished now or before."""
    parts_before: int
    """Parts finished by an earlier run."""
    images: int
    """Images processed now, readable or not."""
    ood: int
    """OOD images found now."""
    errors: int
    """Unreadable images found now."""


class ScoringActor:
    """A worker that holds the model and scores parts."""

    def __init__(self, output: str, options: dict[str, Any]) -> None:
        self._run = RunFolder(output)
        self._detector = self._run.load_model(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Score the parts in the column `part`, each as JSON."""
        return _columns(score_part(self._detector, part, self._run) for part in _parts_in(batch))


class EncodingActor:
    """A worker that holds the encoder and encodes parts into the feature store."""

    def __init__(self, folder: str, parameters: dict[str, Any]) -> None:
        self._run = RunFolder(folder, ENCODED)
        detector = Detector(**parameters)
        self._encoder = detector.prepare_extractor().encoder
        self._store = detector.prepare_extractor().feature_store()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Encode the parts in the column `part`, each as JSON."""
        return _columns(encode_part(self._encoder, self._store, part, self._run) for part in _parts_in(batch))


def _parts_in(batch: dict[str, Any]) -> list[Part]:
    return [Part.from_json(str(text)) for text in batch["part"]]


def _columns(done: Iterable[PartDone]) -> dict[str, list[int]]:
    rows = [asdict(part) for part in done]
    return {name: [row[name] for row in rows] for name in PartDone.__dataclass_fields__}


def score_with_ray(
    model: Path,
    source: str,
    output: str,
    *,
    address: str | None = None,
    workers: int = 2,
    images_per_part: int = 1000,
    false_alarm_rate: float | None = None,
    weights: str | None = None,
    device: str = "auto",
    backend: Backend = "auto",
    on_ignored: Callable[[list[str]], None] = lambda names: None,
    on_plan: Callable[[int, int], None] = lambda parts, before: None,
    on_part: Callable[[PartDone], None] = lambda done: None,
) -> RunSummary:
    """Score a collection on a Ray cluster. Resumes an earlier run of the same collection and model.

    Args:
        model: model directory; copied to the output folder for the workers.
        source: see `dlsr.scale.parts.plan`; every worker must be able to read it.
        output: folder or fsspec URL for the results, see `dlsr.scale.run`; every worker must be able to write to it.
        address: address of the cluster, such as `auto` or `ray://HOST:10001`; None starts a cluster on this machine.
        workers: most actors, each with one CPU, and with one GPU if the cluster has GPUs.
        images_per_part: most images in a task, and in a file of results.
        false_alarm_rate: None for the model's.
        weights: path of the encoder's weights on the workers, as for `Detector.load`.
        device: as for `Detector`.
        backend: as for `Detector`.
        on_ignored: see `dlsr.scale.parts.plan`.
        on_plan: callback with the number of parts, and the number of parts done before.
        on_part: callback with each part done now.

    Raises:
        MissingExtraError: without Ray.
        SettingsError: if the cluster cannot be reached.
        InputError, NoImagesError: as `plan`.
        ArtifactError: if the model cannot be read, or the output folder holds another run.
    """
    ray = _ray()
    manifest = read_manifest(model)
    rate = manifest.config.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
    parts = plan(source, images_per_part, on_ignored)
    run = RunFolder(output)
    run.claim({"model": manifest.numbers_sha256, "false_alarm_rate": rate, "source": source, "parts": digest_of(parts)})
    before = run.done(parts)
    on_plan(len(parts), len(before))
    totals = PartDone(0, 0, 0, 0)
    if len(before) < len(parts):
        run.put_model(model)
    options = {"device": device, "backend": backend, "weights": weights, "workers": 1, "false_alarm_rate": rate}
    left = [part for part in parts if part.index not in before]
    for done in process_parts(ray, ScoringActor, [run.full_url, options], left, address, workers, device):
        on_part(done)
        totals = PartDone(0, totals.images + done.images, totals.ood + done.ood, totals.errors + done.errors)
    run.remove_temporary()
    return RunSummary(len(parts), len(before), totals.images, totals.ood, totals.errors)


def encode_with_ray(
    detector: Detector,
    source: str,
    folder: str,
    *,
    address: str | None = None,
    workers: int = 2,
    images_per_part: int = 4096,
    on_ignored: Callable[[list[str]], None] = lambda names: None,
    on_plan: Callable[[int, int], None] = lambda parts, before: None,
    on_part: Callable[[PartDone], None] = lambda done: None,
) -> Encoded:
    """Encode a collection on a Ray cluster into the detector's feature store, for `Detector.fit_encoded`.

    Args:
        detector: its encoder and feature store are used. All workers and this process must share the store.
        source: as for `score_with_ray`, as are `address` and the arguments after it.
        folder: for the files of the run, shared too. An earlier run of the same collection and encoder is resumed.
        address: address of the cluster.
        workers: most actors.
        images_per_part: most images in a task.
        on_ignored: callback with the names of files that are not images.
        on_plan: callback with the numbers of parts.
        on_part: callback with each part.

    Raises:
        MissingExtraError, SettingsError, InputError, NoImagesError: as `score_with_ray`.
        ArtifactError: if the folder holds another run, or features are missing from the store.
    """
    ray = _ray()
    if detector.store is None:
        raise SettingsError("encoding on a cluster needs a feature store; give a folder that all workers share")
    parts = plan(source, images_per_part, on_ignored)
    extractor = detector.prepare_extractor()
    encoder = extractor.encoder
    run = RunFolder(folder, ENCODED)
    store = str(Path(detector.store).absolute())
    run.claim({"encoder": encoder.key, "store": store, "source": source, "parts": digest_of(parts)})
    before = run.done(parts)
    on_plan(len(parts), len(before))
    names = ("encoder", "stages", "weights", "decoding", "precision", "device", "backend")
    parameters = {name: getattr(detector, name) for name in names}
    parameters |= {"pooling": extractor.spec.pooling, "resizer": extractor.spec.resizer, "store": store, "workers": 1}
    left = [part for part in parts if part.index not in before]
    for done in process_parts(ray, EncodingActor, [run.full_url, parameters], left, address, workers, detector.device):
        on_part(done)
    run.remove_temporary()
    return encoded_images(run, parts, extractor.feature_store())


def _ray() -> Any:
    try:
        import_module("ray.data")
        return import_module("ray")
    except ImportError:
        raise MissingExtraError("ray", "cluster") from None


def process_parts(
    ray: Any, actor: type, arguments: list[Any], parts: list[Part], address: str | None, workers: int, device: str
) -> Iterator[PartDone]:
    """Process parts with actors of a class, and yield each part that is done, in any order.

    Args:
        ray: the module.
        actor: class that maps a batch of parts to columns of `PartDone`.
        arguments: of its constructor.
        parts: to process.
        address: address of the cluster; None starts one on this machine.
        workers: most actors.
        device: of the actors.

    Raises:
        OutputError: if a worker fails otherwise than by an image.
    """
    if not parts:
        return
    connect(ray, address, workers)
    rows = ray.data.from_items([{"part": part.to_json()} for part in parts], override_num_blocks=len(parts))
    done = rows.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) and device != "cpu" else None,
    )
    try:
        for row in done.iter_rows():
            yield PartDone(**{name: int(value) for name, value in row.items()})
    except ray.exceptions.RayError as error:
        found = _RAISED.search(str(error))
        reason = found[0] if found else str(error).splitlines()[0]
        raise OutputError(f"a worker failed: {reason}; what is done is kept, run the same command again") from error


def connect(ray: Any, address: str | None, workers: int) -> None:
    """Connect to a Ray cluster, unless this process is connected already.

    Args:
        ray: the module.
        address: address of the cluster; None starts one on this machine.
        workers: actors that a new cluster has CPUs for.

    Raises:
        SettingsError: if the cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    # dlsr reports progress and errors itself; Ray's messages are in its log files.
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    try:
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports to its makers that it is used
            # One CPU more, for the tasks of Ray Data itself.
            ray.init(num_cpus=workers + 1, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise SettingsError(f"cannot reach the Ray cluster at '{address or 'this machine'}': {reason}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
