"""Parts scored by actors of a Ray cluster, through Ray Data: streaming, bounded, retried when a worker dies."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dlsr.artifact import read_manifest
from dlsr.engines import Backend
from dlsr.errors import MissingExtraError, SettingsError, one_line
from dlsr.scale.parts import Part, digest_of, plan
from dlsr.scale.scoring import PartDone, RunFolder, score_part


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
    """A worker: holds the model, takes parts."""

    def __init__(self, output: str, options: dict[str, Any]) -> None:
        self._run = RunFolder(output)
        self._detector = self._run.load_model(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Score the parts of a batch, which Ray Data gives as a column of JSON."""
        done = [asdict(score_part(self._detector, Part.from_json(str(text)), self._run)) for text in batch["part"]]
        return {name: [one[name] for one in done] for name in PartDone.__dataclass_fields__}


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
        output: folder or fsspec URL for the results, see `dlsr.scale.scoring`; writable from every worker.
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
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    manifest = read_manifest(model)
    rate = manifest.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
    parts = plan(source, images_per_part)
    run = RunFolder(output)
    run.claim({"model": manifest.numbers_sha256, "false_alarm_rate": rate, "source": source, "parts": digest_of(parts)})
    before = run.done(parts)
    on_plan(len(parts), len(before))
    left = [part for part in parts if part.index not in before]
    totals = PartDone(0, 0, 0, 0)
    if left:
        _connect(ray, address, workers)
        rows = ray.data.from_items([{"part": part.to_json()} for part in left], override_num_blocks=len(left))
        run.put_model(model)
        options = {"device": device, "backend": backend, "weights": weights, "workers": 1, "false_alarm_rate": rate}
        done_rows = rows.map_batches(
            ScoringActor,
            fn_constructor_args=[output, options],
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=1,
            num_gpus=1 if ray.cluster_resources().get("GPU", 0) and device != "cpu" else None,
        )
        for row in done_rows.iter_rows():
            done = PartDone(**{name: int(value) for name, value in row.items()})
            on_part(done)
            totals = PartDone(0, totals.images + done.images, totals.ood + done.ood, totals.errors + done.errors)
    return RunSummary(len(parts), len(before), totals.images, totals.ood, totals.errors)


def _connect(ray: Any, address: str | None, workers: int) -> None:
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
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
