"""Parts scored or encoded by actors of a Ray cluster, by Ray Data: streaming, bounded, retried if a worker dies."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dlsr.artifact import read_manifest
from dlsr.detector import Detector
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import MissingExtraError, SettingsError, one_line
from dlsr.runtime.backends import Backend
from dlsr.scale.parts import Part, digest_of, plan
from dlsr.scale.run import RunFolder
from dlsr.scale.tasks import PartDone, encode_part, encoded_images, score_part

ENCODED = "encoded"
"""Folder of a run's tables of what is encoded: names, and keys in the feature store."""


@dataclass(frozen=True)
class RunSummary:
    """What a run came to, over all its parts, whether done now or before."""

    parts: int
    parts_before: int
    """Done by an earlier run."""
    images: int
    """Scored now, readable or not, as are the other counts."""
    ood: int
    errors: int


class ScoringActor:
    """A worker: holds the model, scores parts."""

    def __init__(self, output: str, options: dict[str, Any]) -> None:
        self._run = RunFolder(output)
        self._detector = self._run.load_model(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Score the parts of a batch, which Ray Data gives as a column of JSON."""
        return _columns(score_part(self._detector, part, self._run) for part in _parts_in(batch))


class EncodingActor:
    """A worker: holds the encoder, encodes parts into the feature store."""

    def __init__(self, folder: str, parameters: dict[str, Any]) -> None:
        self._run = RunFolder(folder, ENCODED)
        detector = Detector(**parameters)
        self._encoder = detector.prepare_encoder()
        self._store = detector.feature_store()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Encode the parts of a batch, as `ScoringActor` scores them."""
        return _columns(encode_part(self._encoder, self._store, part, self._run) for part in _parts_in(batch))


def _parts_in(batch: dict[str, Any]) -> list[Part]:
    return [Part.from_json(str(text)) for text in batch["part"]]


def _columns(done: Iterable[PartDone]) -> dict[str, list[int]]:
    rows = [asdict(one) for one in done]
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
    on_plan: Callable[[int, int], None] = lambda parts, before: None,
    on_part: Callable[[PartDone], None] = lambda done: None,
) -> RunSummary:
    """Score a collection on a Ray cluster; what an earlier run of the same has done is not done again.

    Args:
        model: model directory; it is copied to the output folder, for the workers.
        source: see `dlsr.scale.parts.plan`; must be readable from every worker.
        output: folder or fsspec URL for the results, see `dlsr.scale.run`; writable from every worker.
        address: of the cluster, such as `auto` or `ray://HOST:10001`; None starts one on this machine.
        workers: actors at most, each with one CPU, and one GPU where the cluster has any.
        images_per_part: images in a task, and in a file of results.
        false_alarm_rate: instead of the model's.
        weights: where the encoder's weights are on the workers, as for `Detector.load`.
        device: as for `Detector`.
        backend: likewise.
        on_plan: told how many parts there are, and how many are done already.
        on_part: told of each part done now.

    Raises:
        MissingExtraError: without Ray.
        SettingsError: if the cluster cannot be reached.
        InputError: as `plan`.
        ArtifactError: if the model cannot be read, or the output folder holds another run.
    """
    ray = _ray()
    manifest = read_manifest(model)
    rate = manifest.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
    parts = plan(source, images_per_part)
    run = RunFolder(output)
    run.claim({"model": manifest.numbers_sha256, "false_alarm_rate": rate, "source": source, "parts": digest_of(parts)})
    before = run.done(parts)
    on_plan(len(parts), len(before))
    totals = PartDone(0, 0, 0, 0)
    if len(before) < len(parts):
        run.put_model(model)
    options = {"device": device, "backend": backend, "weights": weights, "workers": 1, "false_alarm_rate": rate}
    left = [part for part in parts if part.index not in before]
    for done in _done_by(ray, ScoringActor, [run.full_url, options], left, address, workers, device):
        on_part(done)
        totals = PartDone(0, totals.images + done.images, totals.ood + done.ood, totals.errors + done.errors)
    return RunSummary(len(parts), len(before), totals.images, totals.ood, totals.errors)


def encode_with_ray(
    detector: Detector,
    source: str,
    folder: str,
    *,
    address: str | None = None,
    workers: int = 2,
    images_per_part: int = 4096,
    on_plan: Callable[[int, int], None] = lambda parts, before: None,
    on_part: Callable[[PartDone], None] = lambda done: None,
) -> Encoded:
    """Encode a collection on a Ray cluster into the detector's feature store, for `Detector.fit_encoded`.

    Args:
        detector: whose encoder and store; the store must be on a file system that all workers and this process share.
        source: as for `score_with_ray`.
        folder: for the files of the run, likewise shared; what an earlier run of the same has done is not done again.
        address: as for `score_with_ray`, as are the rest.
        workers: likewise.
        images_per_part: likewise.
        on_plan: likewise.
        on_part: likewise.

    Raises:
        MissingExtraError, SettingsError, InputError: as `score_with_ray`.
        ArtifactError: if the folder holds another run, or the store has lost what it says is done.
    """
    ray = _ray()
    if detector.store is None:
        raise SettingsError("encoding on a cluster goes through the feature store; give it a folder that all share")
    parts = plan(source, images_per_part)
    encoder = detector.prepare_encoder()
    run = RunFolder(folder, ENCODED)
    store = str(Path(detector.store).absolute())
    run.claim({"encoder": encoder.key, "store": store, "source": source, "parts": digest_of(parts)})
    before = run.done(parts)
    on_plan(len(parts), len(before))
    parameters = detector.get_params() | {"store": store, "workers": 1}
    left = [part for part in parts if part.index not in before]
    for done in _done_by(ray, EncodingActor, [run.full_url, parameters], left, address, workers, detector.device):
        on_part(done)
    return encoded_images(run, parts, detector.feature_store())


def _ray() -> Any:
    try:
        import_module("ray.data")
        return import_module("ray")
    except ImportError:
        raise MissingExtraError("ray", "ray") from None


def _done_by(
    ray: Any, actor: type, arguments: list[Any], parts: list[Part], address: str | None, workers: int, device: str
) -> Iterator[PartDone]:
    """Hand out parts to actors of a class, and tell of each that is done."""
    if not parts:
        return
    _connect(ray, address, workers)
    rows = ray.data.from_items([{"part": part.to_json()} for part in parts], override_num_blocks=len(parts))
    done = rows.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) and device != "cpu" else None,
    )
    for row in done.iter_rows():
        yield PartDone(**{name: int(value) for name, value in row.items()})


def _connect(ray: Any, address: str | None, workers: int) -> None:
    if ray.is_initialized():
        return
    # Progress and errors are this program's to tell; Ray's own remarks are in its log files.
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    try:
        if address is None:
            # One CPU is for what Ray Data itself runs.
            ray.init(num_cpus=workers + 1, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise SettingsError(f"cannot reach the Ray cluster at '{address or 'this machine'}': {reason}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
