"""Kills, damaged tars, strangers' models and random requests: no crash, no hang, no lost row, no wrong score.

    python benchmarks/soak.py --output docs/soak.json

- `fit`, `score --output` and `calibrate` are killed at random moments and run again.
- Tars with every kind of member are damaged at random and scored; GNU tar, where it gets an image out of the same tar,
  must lead to the same score.
- Model directories are changed at random, with valid digests, and loaded and used.
- The largest accepted image of each format is scored, and the memory that it takes is compared with the bound.
- A service answers random requests.

A case runs in a fork of this process, which has imported the libraries. The numbers of cases are fixed, and the seed
determines them. Writes a JSON file in which every count of `failures` should be empty.
"""

import asyncio
import contextlib
import copy
import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_images

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.cli import main as dlsr
from dlsr.cli.console import progress_bars
from dlsr.errors import DlsrError
from dlsr.files import write_json
from dlsr.images.decode import most_pixels
from fuzz import damaged, fuzz_service, samples

HANGS = 10.0
"""Seconds after which a case is considered to hang."""
IMAGES = 48
TOLERANCE = 1e-4
"""Of scores, relative to the reference."""
DECODING_BYTES = 1.1e9
"""At most, besides the file, see `dlsr.images.decode`."""
LARGEST: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("PNG", mode, {"compress_level": 1}) for mode in ("RGBA", "RGB", "P", "I;16", "1")),
    *(("JPEG", mode, {"progressive": progressive}) for mode in ("RGB", "CMYK", "L") for progressive in (False, True)),
    *(("TIFF", mode, {"compression": "tiff_adobe_deflate"}) for mode in ("RGBA", "I;16", "CMYK")),
    *(("TIFF", "RGB", {"compression": compression}) for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")),
    ("WEBP", "RGBA", {"quality": 50, "method": 0}),
    ("WEBP", "RGB", {"lossless": True, "method": 0, "quality": 0}),
    ("JPEG2000", "RGBA", {}),
    ("AVIF", "RGBA", {"speed": 10}),
    *(("BMP", "RGB", {}), ("GIF", "P", {}), ("PPM", "RGB", {}), ("TGA", "RGBA", {"compression": "tga_rle"})),
)
"""Format, mode and options of Pillow of the images whose memory is measured."""


@dataclass(frozen=True)
class Run:
    """A function that ran in a fork."""

    status: int
    """0 if it returned; 2 for an error that users can cause; else it crashed, or was killed: minus the signal."""
    said: str
    seconds: float
    peak_bytes: int

    def failure(self) -> str | None:
        """What went wrong; None if it ended as it should."""
        if self.seconds > HANGS:
            return f"took {self.seconds:.1f} s"
        if self.status not in (0, 2) or "Traceback" in self.said:
            return f"crashed with {self.status}: {self.said[-2000:]}"
        if self.status == 2 and not self.said.strip():
            return "failed without a word"
        return None


def forked(work: Callable[[], None], kill_after: float = HANGS + 5) -> Run:
    """Call a function in a fork of this process, and kill that after some seconds."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            status = 1
            try:
                work()
                status = 0
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
            except DlsrError as error:
                print(error)
                status = 2
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

        def kill(*_: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)

        timer = signal.signal(signal.SIGALRM, kill)
        signal.setitimer(signal.ITIMER_REAL, kill_after)
        _, ended, usage = os.wait4(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, timer)
        said.seek(0)
        text = said.read().decode(errors="replace")
    seconds = time.perf_counter() - start
    return Run(os.waitstatus_to_exitcode(ended), text, seconds, usage.ru_maxrss * 1024)


def command(*arguments: object) -> Callable[[], None]:
    """`dlsr` with these arguments."""

    def work() -> None:
        sys.argv = ["dlsr", *map(str, arguments)]
        dlsr()

    return work


def main(
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    kills: Annotated[int, typer.Option(help="Commands that are killed.")] = 200,
    tars: Annotated[int, typer.Option(help="Damaged tars.")] = 1000,
    models: Annotated[int, typer.Option(help="Changed model directories.")] = 1000,
    requests: Annotated[int, typer.Option(help="Random requests.")] = 100_000,
    largest: Annotated[bool, typer.Option(help="Measure the memory of the largest images.")] = True,
    seed: int = 0,
) -> None:
    torch.set_num_threads(1)  # a fork has only the thread that forked
    with tempfile.TemporaryDirectory() as folder, progress_bars(quiet=False) as bars:
        work = Path(folder)
        os.environ["DLSR_CACHE"] = str(work / "cache")
        images = write_images(work / "images")
        fitted = forked(fit(images, work / "model"))
        if fitted.status:
            raise RuntimeError(fitted.said)
        detector = Detector.load(work / "model", backend="torch")
        detector.detect(images)
        found = {
            "kills": counted(kill_cases(work, images, random.Random(seed)), kills, bars.images("kills", kills)),
            "tars": counted(tar_cases(work, detector, random.Random(seed)), tars, bars.images("tars", tars)),
            "models": counted(model_cases(work, images, random.Random(seed)), models, bars.images("models", models)),
        }
        if largest:
            found["largest"] = largest_images(work / "largest", detector)
        if requests:
            found["requests"] = asyncio.run(fuzz_service(work / "model", samples(), requests, random.Random(seed)))
    content = {
        "command": "python benchmarks/soak.py " + " ".join(sys.argv[1:]),
        **found,
        "versions": installed_versions(),
    }
    write_json(output, content)
    print(json.dumps(content, indent=1))


@dataclass(frozen=True)
class Case:
    """What became of one case."""

    what: str
    outcome: str
    runs: list[Run]
    wrong: str | None = None
    """What is wrong apart from the way the runs ended."""

    def failure(self) -> str | None:
        """What went wrong; None if nothing did."""
        return self.wrong or next((why for why in (run.failure() for run in self.runs) if why), None)


def counted(cases: Iterator[Case], count: int, advance: Callable[[int], None]) -> dict[str, Any]:
    """Run so many cases, and count the outcomes."""
    outcomes: Counter[str] = Counter()
    failures, slowest, peak = [], 0.0, 0
    for _, case in zip(range(count), cases, strict=False):
        outcomes[case.outcome] += 1
        why = case.failure()
        if why:
            failures.append(f"{case.what}: {why}")
        slowest = max([slowest, *(run.seconds for run in case.runs)])
        peak = max([peak, *(run.peak_bytes for run in case.runs)])
        advance(1)
    return {
        "cases": count,
        "outcomes": dict(outcomes),
        "failures": failures,
        "slowest_seconds": slowest,
        "peak_bytes": peak,
    }


def write_images(folder: Path) -> Path:
    """Crops of photographs in several formats."""
    folder.mkdir()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = random.Random(0)
    for i in range(IMAGES):
        photograph = photographs[i % len(photographs)]
        left, top = (rng.randrange(size - 96) for size in photograph.size)
        suffix = ("png", "jpg", "bmp", "tif")[i % 4]
        photograph.crop((left, top, left + 96, top + 64)).save(folder / f"{i:03}.{suffix}")
    return folder


def fit(images: Path, model: Path) -> Callable[[], None]:
    """`dlsr fit` with a small encoder."""
    return command(
        *("fit", images, "-o", model, "--encoder", "test_resnet", "--weights", "random"),
        *("--backend", "torch", "--group-by", "none", "--false-alarm-rate", 0.1, "--quiet"),
    )


def scores_of(detector: Detector, images: Path) -> dict[str, float]:
    """Score by name, relative to the folder or tar; NaN for images that cannot be read."""
    return {result.path: math.nan if result.score is None else result.score for result in detector.detect(images)}


def differences(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Names with another score, where both have one."""
    return [
        name
        for name in found.keys() & expected.keys()
        if math.isfinite(found[name])
        and math.isfinite(expected[name])
        and not math.isclose(found[name], expected[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    ]


def kill_cases(work: Path, images: Path, rng: random.Random) -> Iterator[Case]:
    """Commands that are killed at random moments and run again."""
    expected = scores_of(Detector.load(work / "model"), images)
    usual: dict[str, float] = {}
    i = 0
    while True:
        name = ("fit", "score", "calibrate")[i % 3]
        here = work / f"kill-{i}"
        here.mkdir()
        os.environ["DLSR_CACHE"] = str(here / "cache")
        model, output = here / "model", here / "scores.csv"
        if name != "fit":
            shutil.copytree(work / "model", model)
        runs = {
            "fit": fit(images, model),
            "score": command("score", model, images, "-o", output, "--backend", "torch", "--quiet"),
            "calibrate": command(
                *("calibrate", model, "--images", images, "--false-alarm-rate", 0.2, "--backend", "torch", "--quiet")
            ),
        }
        if name not in usual:
            usual[name] = forked(runs[name]).seconds
            shutil.rmtree(here)
            continue
        after = rng.uniform(0, usual[name])
        first = forked(runs[name], after)
        between = [] if name == "fit" else [forked(command("info", model))]
        again = forked(runs[name])
        yield Case(
            f"{name}, killed after {after:.3f} s",
            f"{name} killed" if first.status == -signal.SIGKILL else f"{name} ended before",
            [*between, again],
            killed_wrong(again, here, expected, images),
        )
        shutil.rmtree(here)
        i += 1


def killed_wrong(again: Run, here: Path, expected: dict[str, float], images: Path) -> str | None:
    """What is wrong after the second run of a killed command."""
    if again.status:
        return f"the second run failed: {again.said}"
    left = [str(path.relative_to(here)) for path in (here / "model").rglob(".*")]
    left += [path.name for path in here.iterdir() if path.name not in ("model", "cache", "scores.csv")]
    if left:
        return f"left over: {', '.join(left)}"
    found = scores_of(Detector.load(here / "model"), images)
    if found.keys() != expected.keys():
        return f"{len(expected.keys() - found.keys())} rows are missing"
    output = here / "scores.csv"
    if output.exists() and len(output.read_text().splitlines()) != len(expected) + 1:
        return "rows are missing in the output"
    return f"wrong scores: {wrong}" if (wrong := differences(found, expected)) else None


def tar_cases(work: Path, detector: Detector, rng: random.Random) -> Iterator[Case]:
    """Tars that are damaged at random."""
    folder = work / "tars"
    folder.mkdir()
    whole = whole_tars(folder, work / "images")
    i = 0
    while True:
        name = rng.choice(sorted(whole))
        here = folder / f"case-{i}"
        here.mkdir()
        path = here / name
        path.write_bytes(damaged(whole[name], rng))
        rows, unpacked = here / "rows.json", here / "unpacked"
        unpacked.mkdir()
        subprocess.run(
            ["tar", "-xf", path, "-C", unpacked, "--no-same-owner", "--no-same-permissions"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        run = forked(lambda: write_json(rows, scores_of(detector, path)))  # noqa: B023 - called at once
        wrong = None
        if run.status == 0:
            found = read_scores(rows)
            oracle = forked(lambda: write_json(rows, scores_of(detector, unpacked)))  # noqa: B023
            others = read_scores(rows) if oracle.status == 0 else {}
            found = {name.partition("::")[2] or name: score for name, score in found.items()}
            wrong = f"other scores than of the unpacked: {bad}" if (bad := differences(found, others)) else None
        yield Case(f"{name}, case {i}", "scored" if run.status == 0 else "refused", [run], wrong)
        subprocess.run(["chmod", "-R", "u+rwX", here], check=False, capture_output=True)
        shutil.rmtree(here)
        i += 1


def read_scores(path: Path) -> dict[str, float]:
    """Scores from JSON; NaN for images that could not be read."""
    found: dict[str, float | None] = json.loads(path.read_text())
    return {name: math.nan if score is None else score for name, score in found.items()}


def whole_tars(folder: Path, images: Path) -> dict[str, bytes]:
    """Tars with all kinds of members, by name."""
    made = {}
    chosen = sorted(images.iterdir())[:10]
    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")):
        for kind, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
                for path in chosen:
                    tar.add(path, f"{kind}/ä{'x' * 60 if kind != 'ustar' else ''}{path.name}")
                for link, type_ in (("hard", tarfile.LNKTYPE), ("symbolic", tarfile.SYMTYPE)):
                    member = tarfile.TarInfo(f"{kind}/{link}.png")
                    member.type = type_
                    name = f"ä{'x' * 60 if kind != 'ustar' else ''}{chosen[0].name}"
                    member.linkname = f"{kind}/{name}" if link == "hard" else name
                    tar.addfile(member)
            made[f"{kind}.{suffix}"] = buffer.getvalue()
    sparse = folder / "sparse"
    sparse.mkdir()
    picture = Image.new("RGB", (160, 120))
    picture.paste(Image.open(chosen[0]), (30, 20))
    picture.save(sparse / "sparse.bmp")
    subprocess.run(["fallocate", "--dig-holes", sparse / "sparse.bmp"], check=True)
    for kind in ("gnu", "posix"):
        path = folder / f"sparse-{kind}.tar"
        subprocess.run(["tar", "-S", "-H", kind, "-cf", path, "-C", sparse, "sparse.bmp"], check=True)
        made[path.name] = path.read_bytes()
    return made


NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**6, 10**7, 10**30, 0.5, -1.5, 1e308, "", "x" * 300, "/etc/passwd", [], {}, [1, 2]),
    *(math.nan, math.inf, "hf-hub:timm/resnet18", "local-dir:/etc", "../../etc", ["a"] * 1000, [[[[]]]]),
)


def model_cases(work: Path, images: Path, rng: random.Random) -> Iterator[Case]:
    """Model directories that are changed at random and have valid digests."""
    original = work / "model"
    manifest = json.loads((original / "model.json").read_text())
    content = (original / manifest["numbers"]).read_bytes()
    tensors = safetensors.torch.load(content)
    i = 0
    while True:
        changed, numbers = copy.deepcopy(manifest), dict(tensors)
        what = change_tensor(numbers, rng) if rng.random() < 0.4 else change_json(changed, rng)
        here = work / f"model-{i}"
        here.mkdir()
        write_changed(here, changed, numbers)
        if rng.random() < 0.1:
            victim = rng.choice(sorted(here.iterdir()))
            victim.write_bytes(damaged(victim.read_bytes(), rng))
            what += f", bytes of {victim.name}"
        run = forked(lambda: use(here, images))  # noqa: B023 - called at once
        yield Case(what, "used" if run.status == 0 else "refused", [run])
        shutil.rmtree(here)
        i += 1


def use(model: Path, images: Path) -> None:
    """Load a model and score with it."""
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):  # noqa: PTH123
        results = Detector.load(model, backend="torch").detect(images)
    if not all(result.score is None or math.isfinite(result.score) for result in results):
        raise AssertionError("a score that is not finite")


def change_json(content: dict[str, Any], rng: random.Random) -> str:
    """Replace, remove or add one value anywhere; where, and by what."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    node, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del node[key]
            return f"without {key!r}"
        case 1:
            deep: Any = 0
            for _ in range(900):
                deep = [deep]
            node[key] = deep
            return f"{key!r} = a deep list"
        case 2 if isinstance(node, dict):
            node[f"{key}x"] = node[key]
            return f"{key!r}x added"
        case 3 if isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = node[key] * rng.choice((-1, 0, 10, 1000, 0.001))
            return f"{key!r} = {node[key]!r}"
        case _:
            node[key] = rng.choice(NASTY)
            return f"{key!r} = {str(node[key])[:80]!r}"


def change_tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    """Change one tensor; which, and how."""
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    match rng.randrange(8):
        case 0:
            del tensors[name]
            return f"{name} missing"
        case 1:
            tensors[name] = torch.full_like(tensor.double(), math.nan)
            return f"{name} NaN"
        case 2:
            tensors[name] = tensor.reshape(-1)[:0]
            return f"{name} empty"
        case 3:
            tensors[name] = tensor[None]
            return f"{name} with one more dimension"
        case 4:
            tensors[name] = tensor.reshape(-1)[: max(tensor.numel() // 2, 1)]
            return f"{name} flat and short"
        case 5:
            tensors[name] = tensor.to(torch.float16 if tensor.is_floating_point() else torch.float64)
            return f"{name} of another type"
        case 6:
            tensors[name] = torch.full_like(tensor, 1e30 if tensor.is_floating_point() else 100)
            return f"{name} huge"
        case _:
            tensors[f"{name}x"] = tensors.pop(name)
            return f"{name} renamed"


def largest_images(folder: Path, detector: Detector) -> dict[str, Any]:
    """Memory and time that scoring the largest accepted image of each format takes."""

    def write(path: Path, format: str, mode: str, side: int, options: dict[str, Any]) -> None:
        image = Image.new(mode, (side, side))
        with contextlib.suppress(ValueError):  # a photograph is not of every mode
            image.paste(Image.fromarray(load_sample_images().images[0]).convert(mode), (side // 3, side // 3))
        image.save(path, format, **options)

    folder.mkdir()
    measured: dict[str, dict[str, float]] = {}
    failures = []
    for format, mode, options in LARGEST:
        what = " ".join([format, mode, *(f"{name}={value}" for name, value in options.items())])
        path, rows = folder / "image.png", folder / "rows.json"  # the content tells the format
        peaks = []
        for side in (64, math.isqrt(most_pixels(format))):
            written = forked(lambda: write(path, format, mode, side, options), kill_after=300)  # noqa: B023
            if written.status:
                raise RuntimeError(f"{what}: {written.said}")
            run = forked(lambda: write_json(rows, scores_of(detector, folder)), kill_after=120)  # noqa: B023
            if run.status or not all(math.isfinite(score) for score in read_scores(rows).values()):
                failures.append(f"{what}, {side}x{side}: {run.status}, {run.said or 'not scored'}")
            peaks.append(run.peak_bytes)
            rows.unlink(missing_ok=True)
        taken = peaks[1] - peaks[0]
        measured[what] = {
            "pixels": side**2,
            "file_bytes": path.stat().st_size,
            "bytes": taken,
            "seconds": run.seconds,
        }
        if taken > DECODING_BYTES + path.stat().st_size:
            failures.append(f"{what}: {taken} bytes")
        path.unlink()
    return {"bound_bytes": DECODING_BYTES, "measured": measured, "failures": failures}


def write_changed(folder: Path, manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a model directory with valid digests, whatever the manifest says."""
    bare = {name: value for name, value in manifest.items() if name not in ("numbers", "numbers_sha256")}
    digest = hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"manifest_sha256": digest}
    )
    sha256 = hashlib.sha256(content).hexdigest()
    changed = dict(manifest)
    if isinstance(changed.get("numbers"), str) and changed["numbers"].startswith("numbers-"):
        changed |= {"numbers": f"numbers-{sha256[:16]}.safetensors", "numbers_sha256": sha256}
    (folder / f"numbers-{sha256[:16]}.safetensors").write_bytes(content)
    (folder / "model.json").write_text(json.dumps(changed, indent=2))


if __name__ == "__main__":
    typer.run(main)
