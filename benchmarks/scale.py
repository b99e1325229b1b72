"""Scoring on a local Ray cluster: the same scores as one process, scaling from 1 to 2 workers, cost per million images.

    python benchmarks/scale.py --data ../shared/data --work /tmp/scale --output docs/scale.json

60,000 CIFAR-10 images, as WebDataset shards and as Parquet, are scored by `dlsr score` in one process and by
`dlsr score --engine ray`. Scaling is measured in successive runs of 20,000 images with as many cores as workers
(`taskset`). Then each stage is timed on one core: reading, decoding, encoding, restoring and scoring. Finished
measurements are kept in `--work`.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
import typer

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.files import write_json
from dlsr.images.sources import ImageDataset, open_images
from dlsr.method.noise import pixel_digest
from dlsr.scale.parts import Part
from dlsr.scale.ray_engine import process_parts
from dlsr.scorers.base import score_features
from dlsr.streaming import in_groups

SHARD = 5000
TRAINING_IMAGES = 5000
STAGE_IMAGES = 1024


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10.tar and dtd_5classes.tar.")],
    work: Annotated[
        Path, typer.Option(help="Folder for sources, the model and results; finished measurements are kept.")
    ],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    images: Annotated[int, typer.Option(help="Images to score.")] = 60_000,
    compared: Annotated[int, typer.Option(help="Images in the runs that are compared.")] = 20_000,
) -> None:
    everything = open_images(data / "cifar10.tar")
    sources = written_sources(everything, work, images, compared)
    model = fitted_model(everything, work)
    runs = (
        # name, source, workers, cores
        ("tar-2", "tar", 2, 2),
        ("parquet-2", "parquet", 2, 2),
        ("tar-part-1", "tar-part", 1, 1),
        ("tar-part-2", "tar-part", 2, 2),
        ("parquet-part-1", "parquet-part", 1, 1),
        ("parquet-part-2", "parquet-part", 2, 2),
        ("tar-part-1-of-2", "tar-part", 1, 2),
    )
    content: dict[str, Any] = {
        "command": "python benchmarks/scale.py " + " ".join(sys.argv[1:]),
        "cores": os.cpu_count(),
        "one_process": kept(work / "one.json", lambda: one_process(model, sources["tar"], work / "one.parquet")),
        "ray": {
            name: kept(work / f"{name}.json", partial(on_ray, model, sources[source], work / name, workers, cores))
            for name, source, workers, cores in runs
        },
        "stages": {
            "CIFAR-10, 32 px": kept(work / "stages-small.json", partial(stages, model, everything)),
            "DTD, 271 to 670 px": kept(
                work / "stages-photographs.json", lambda: stages(model, open_images(data / "dtd_5classes.tar"))
            ),
        },
        "handing_out": kept(work / "parts.json", handing_out),
        "bytes_of_results_per_image": sum(one.stat().st_size for one in (work / "tar-2" / "scores").iterdir()) / images,
        "versions": installed_versions(),
    }
    scores = scores_in(work / "one.parquet")
    content["agreement"] = {
        name: agreement(scores, scores_in(work / name / "scores")) for name in ("tar-2", "parquet-2")
    }
    rates = {name: run["steady_images_per_second"] for name, run in content["ray"].items()}
    content["efficiency"] = {
        kind: rates[f"{kind}-part-2"] / (2 * rates[f"{kind}-part-1"]) for kind in ("tar", "parquet")
    }
    write_json(output, content)
    print(json.dumps(content, indent=1))


def kept(path: Path, measure: Any) -> dict[str, Any]:
    """The measurement of an earlier run, or a new one."""
    if not path.exists():
        write_json(path, measure())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def written_sources(everything: ImageDataset, work: Path, images: int, part: int) -> dict[str, Path]:
    """Tar shards and Parquet files of all images, and of a part of them."""
    folders = {name: work / name for name in ("tar", "parquet", "tar-part", "parquet-part")}
    if all(folder.exists() for folder in folders.values()):
        return folders
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    for suffix, count in (("", images), ("-part", part)):
        for kind in ("tar", "parquet"):
            folders[kind + suffix].mkdir(parents=True)
        for i, group in enumerate(in_groups(everything.items[:count], SHARD)):
            rows = {item.name.replace("/", "-"): bytes(item.read()) for item in group}  # type: ignore[call-overload]
            with tarfile.open(folders["tar" + suffix] / f"{i:03}.tar", "w") as tar:
                for name, content in rows.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            table = pa.table({"image": list(rows.values()), "path": list(rows)})
            pq.write_table(table, folders["parquet" + suffix] / f"{i:03}.parquet", row_group_size=1000)
    return folders


def fitted_model(everything: ImageDataset, work: Path) -> Path:
    model = work / "model"
    if not model.exists():
        training = everything.subset(i for i, item in enumerate(everything.items) if "/train/" in item.name)
        Detector(store=work / "store").fit(training.sample(TRAINING_IMAGES)).save(model)
    return model


def one_process(model: Path, shards: Path, output: Path) -> dict[str, Any]:
    """`dlsr score` on one tar of all images."""
    whole = output.with_suffix(".tar")
    with tarfile.open(whole, "w") as tar:
        for shard in sorted(shards.iterdir()):
            with tarfile.open(shard) as part:
                for member in part:
                    tar.addfile(member, part.extractfile(member))
    measured = timed(
        ["score", str(model), str(whole), "--no-store", "--output", str(output)], cores=os.cpu_count() or 1
    )
    whole.unlink()
    images = len(scores_in(output))
    return measured | {"images": images, "images_per_second": images / measured["seconds"]}


def on_ray(model: Path, source: Path, output: Path, workers: int, cores: int) -> dict[str, Any]:
    """`dlsr score --engine ray`. The steady rate excludes the start and each worker's first part."""
    shutil.rmtree(output, ignore_errors=True)
    arguments = [
        "score",
        str(model),
        str(source),
        "--engine",
        "ray",
        "--output",
        str(output),
        "--workers",
        str(workers),
    ]
    measured = timed(arguments, cores)
    parts = sorted((output / "scores").iterdir(), key=lambda path: path.stat().st_mtime)
    counts = [pq.read_metadata(path).num_rows for path in parts]
    steady = parts[-1].stat().st_mtime - parts[workers - 1].stat().st_mtime
    rate = sum(counts[workers:]) / steady
    return measured | {
        "source": source.name,
        "workers": workers,
        "cores": cores,
        "images": sum(counts),
        "images_per_second": sum(counts) / measured["seconds"],
        "steady_images_per_second": rate,
        "core_hours_per_million": cores * 1e6 / rate / 3600,
    }


class NoWork:
    """A worker that returns at once."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        parts = [Part.from_json(str(text)) for text in batch["part"]]
        names = ("images", "ood", "errors")
        return {"index": [part.index for part in parts]} | {name: [0] * len(parts) for name in names}


def handing_out() -> dict[str, float]:
    """Parts per second that the driver hands out and takes back through Ray Data."""
    ray = import_module("ray")
    import_module("ray.data")
    rates = {}
    for count in (100, 2000):
        parts = [Part(i, "files", "file:///images", tuple(f"{i}-{j}.jpg" for j in range(100))) for i in range(count)]
        start = time.perf_counter()
        done = sum(1 for _ in process_parts(ray, NoWork, [], parts, None, 2, "cpu"))
        assert done == count
        rates[str(count)] = time.perf_counter() - start
    ray.shutdown()
    return {"parts_per_second": 1900 / (rates["2000"] - rates["100"]), "seconds_for_100": rates["100"]}


def timed(arguments: list[str], cores: int) -> dict[str, Any]:
    """Run dlsr on a number of cores: seconds, and the mean number of busy cores of the whole machine."""
    command = ["taskset", "--cpu-list", f"0-{cores - 1}", sys.executable, "-m", "dlsr", *arguments, "--quiet"]
    start, busy = time.perf_counter(), busy_seconds()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "busy_cores": (busy_seconds() - busy) / seconds}


def busy_seconds() -> float:
    """Busy processor seconds of the machine since it started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def scores_in(path: Path) -> dict[str, tuple[float, bool]]:
    """Scores and verdicts by name.

    Raises:
        RuntimeError: if a name occurs twice.
    """
    rows = ds.dataset(path).to_table(columns=["path", "score", "is_ood"]).to_pylist()
    found = {row["path"].rsplit("/", 1)[-1]: (row["score"], row["is_ood"]) for row in rows}
    if len(found) != len(rows):
        raise RuntimeError(f"{len(rows) - len(found)} images of '{path}' occur twice")
    return found


def agreement(one: dict[str, tuple[float, bool]], other: dict[str, tuple[float, bool]]) -> dict[str, Any]:
    """The differences between two runs."""
    common = sorted(one.keys() & other.keys())
    return {
        "images": len(common),
        "only_in_one": len(one.keys() ^ other.keys()),
        "greatest_difference_of_scores": max(abs(one[name][0] - other[name][0]) for name in common),
        "other_verdicts": sum(one[name][1] != other[name][1] for name in common),
    }


def stages(model: Path, everything: ImageDataset) -> dict[str, Any]:
    """Milliseconds per image in each stage, on one core, and kilobytes to read."""
    images = everything.sample(STAGE_IMAGES)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {0})
    detector = Detector.load(model, workers=1)
    encoder = detector.extractor_.encoder
    spec = encoder.spec
    seconds: dict[str, float] = {}

    def stage(name: str, work: Iterator[Any]) -> list[Any]:
        start = time.perf_counter()
        done = list(work)
        seconds[name] = time.perf_counter() - start
        return done

    raw = stage("read", (bytes(item.read()) for item in images.items))  # type: ignore[call-overload]
    pixels = stage("decode_and_resize", (spec.resize(spec.decode(one)) for one in raw))
    digests = np.stack(stage("digest", (pixel_digest(one) for one in pixels)))
    batches = [np.stack(batch) for batch in in_groups(pixels, encoder.batch)]
    encoder.encode(batches[0])  # compiled, or read from the cache
    z0 = np.concatenate(stage("encode", (encoder.encode(batch) for batch in batches)))
    scorer, seed = detector.scorer_, detector.settings_.seed
    rows = torch.from_numpy(z0)
    score_features(scorer, rows[:1], digests[:1], seed)
    stage("restore_and_score", (score_features(scorer, rows, digests, seed) for _ in range(1)))
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return {
        "images": len(raw),
        "kilobytes_per_image": sum(map(len, raw)) / len(raw) / 1000,
        "backend": encoder.backend,
        "milliseconds_per_image": {name: 1000 * value / len(raw) for name, value in seconds.items()},
    }


if __name__ == "__main__":
    typer.run(main)
