import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray

from dlsr import (
    ArtifactError,
    Detector,
    InputError,
    NoImagesError,
    OutputError,
    SettingsError,
    UnreadableImagesWarning,
)
from dlsr.errors import ImageError
from dlsr.scale.parts import FEW_SHARDS, Part, digest_of, items_of, plan
from dlsr.scale.ray_engine import ENCODED, connect, encode_with_ray, process_parts, score_with_ray
from dlsr.scale.run import CAREFUL_AFTER, RunFolder
from dlsr.scale.tasks import encode_part, encoded_images, score_part
from shared import children_of

FITTED = {
    "encoder": "test_resnet", "weights": "random", "backend": "torch", "false_alarm_rate": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def contents(odd_folder):
    """Names and bytes of 40 images, and of two that cannot be read."""
    found = {path.name: path.read_bytes() for path in sorted(odd_folder.iterdir())}
    return found | {"broken.png": b"broken", "empty.png": b""}


def write_tar(path, contents):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def sources(tmp_path_factory, contents):
    """The images as sources of every kind."""
    root = tmp_path_factory.mktemp("sources")
    (root / "folder" / "below").mkdir(parents=True)
    for i, (name, content) in enumerate(contents.items()):
        (root / "folder" / ("below" if i % 2 else ".") / name).write_bytes(content)
    (root / "folder" / "notes.txt").write_text("no image")
    names = sorted(contents)
    for kind, suffix in (("shards", "tar"), ("compressed", "tar.gz")):
        (root / kind).mkdir()
        for i in range(3):
            write_tar(root / kind / f"{i}.{suffix}", {name: contents[name] for name in names[i::3]} | {"a.json": b"{}"})
    write_tar(root / "one.tar", contents)
    table = pa.table({"image": [contents[name] for name in names], "path": names})
    (root / "tables").mkdir()
    pq.write_table(table.slice(0, 25), root / "tables" / "a.parquet", row_group_size=7)
    pq.write_table(table.slice(25), root / "tables" / "b.parquet")
    rows = [{"bytes": contents[name], "path": name} for name in names]
    pq.write_table(pa.table({"image": rows}), root / "hugging.parquet")
    features = datasets.Features({"picture": datasets.Image(decode=False)})
    dataset = datasets.Dataset.from_dict({"picture": rows}, features)
    dataset.cast_column("picture", datasets.Image()).save_to_disk(root / "dataset")
    return root


KINDS = {
    "folder": "files", "shards": "members", "compressed": "tar", "one.tar": "members", "tables": "parquet",
    "hugging.parquet": "parquet", "hf:dataset": "dataset",
}  # fmt: skip


def at(root, source):
    return f"hf:{root}/{source[3:]}" if source.startswith("hf:") else f"{root}/{source}"


# Parts


@pytest.mark.parametrize("source", KINDS)
def test_every_image_is_in_one_part(sources, contents, source):
    parts = plan(at(sources, source), 10)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert {part.kind for part in parts} == {KINDS[source]}
    assert len(parts) >= 3
    assert plan(at(sources, source), 10) == parts
    assert [Part.from_json(part.to_json()) for part in parts] == parts
    items = [item for part in parts for item in items_of(part)]
    assert sorted(item.read() for item in items) == sorted(contents.values())
    assert len({item.name for item in items}) == len(contents)
    if KINDS[source] != "tar":
        assert all(len(list(items_of(part))) <= 10 for part in parts)


def test_a_source_may_be_a_url(contents):
    memory = fsspec.filesystem("memory")
    for name, content in contents.items():
        memory.pipe_file(f"/bucket/images/{name}", content)
    items = [item for part in plan("memory://bucket/images", 20) for item in items_of(part)]
    assert sorted(item.read() for item in items) == sorted(contents.values())


def test_files_that_are_not_images_are_told(sources, tmp_path):
    told = []
    shutil.copytree(sources / "folder", tmp_path / "in")
    write_tar(tmp_path / "in" / "a.tar", {"x.png": b"", "x.json": b""})
    (tmp_path / "in" / "linked").symlink_to(sources)
    plan(str(tmp_path / "in"), 10, told.extend)
    assert [name.removeprefix(f"{tmp_path}/in/") for name in told] == ["a.tar/x.json", "linked", "notes.txt"]


def test_a_folder_that_cannot_be_listed_is_an_image_that_cannot_be_read(sources, contents, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    items = [item for part in plan(str(sources / "folder"), 10) for item in items_of(part)]
    assert len(items) == len(contents) / 2 + 1
    assert items[-1].name.endswith("below")
    with pytest.raises(ImageError, match="not a regular file"):
        items[-1].read()


@pytest.mark.parametrize("many", [False, True])
def test_a_tar_may_be_a_url(contents, many, monkeypatch):
    memory, buffer = fsspec.filesystem("memory"), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    memory.pipe_file("/bucket/a.tar", buffer.getvalue())
    monkeypatch.setattr("dlsr.scale.parts.FEW_SHARDS", 0 if many else 64)
    parts = plan("memory://bucket/a.tar", 20)
    assert (len(parts) == 1) == many
    assert [item.read() for part in parts for item in list(items_of(part))] == list(contents.values())


def test_of_many_tars_each_is_one_part(tmp_path, contents):
    some = dict(list(contents.items())[:2])
    for i in range(FEW_SHARDS + 1):
        write_tar(tmp_path / f"{i:03}.tar", some)
    parts = plan(str(tmp_path), 1)
    assert len(parts) == FEW_SHARDS + 1
    assert [item.read() for item in items_of(parts[0])] == list(some.values())


def test_a_source_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path, sources):
    with pytest.raises(InputError, match=r"nowhere' does not exist; check the path"):
        plan(str(tmp_path / "nowhere"), 10)
    with pytest.raises(NoImagesError, match="no image, tar or Parquet file"):
        plan(str(tmp_path), 10)
    with pytest.raises(SettingsError, match="at least one image"):
        plan(str(sources / "folder"), 0)
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match="cannot read"):
        plan(str(tmp_path / "a.tar"), 10)
    with pytest.raises(InputError, match="cannot read the dataset"):
        plan(f"hf:{tmp_path}", 10)
    pq.write_table(pa.table({"pixels": [b"x"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no column with image bytes; name it one of image, jpg"):
        list(items_of(plan(str(tmp_path / "b.parquet"), 10)[0]))


# Scoring a part


def rows_of(output):
    """Rows of scores and of errors that a run has written."""
    scores = pyarrow.dataset.dataset(f"{output}/scores").to_table().to_pylist()
    failed = Path(output) / "errors"
    errors = pyarrow.dataset.dataset(failed).to_table().to_pylist() if failed.is_dir() else []
    return scores, errors


def assert_complete(output, expected):
    """Check that a run has each image once, with the expected result; returns the errors by name."""
    scores, errors = rows_of(output)
    found = {row["path"].rsplit("/", 1)[-1]: row for row in scores}
    assert len(found) == len(scores) == len(expected)
    for name, row in found.items():
        assert row["score"] == pytest.approx(expected[name].score, abs=1e-4)
        assert (row["is_ood"], row["top_layer"]) == (expected[name].is_ood, expected[name].top_layer)
    failed = {row["path"].rsplit("/", 1)[-1]: row["error"] for row in errors}
    assert len(failed) == len(errors)
    return failed


@pytest.fixture(scope="module")
def expected(model, odd_folder):
    """Results of one process by name."""
    results = Detector.load(model, backend="torch").results(odd_folder)
    return {result.path.rsplit("/", 1)[-1]: result for result in results}


@pytest.mark.parametrize("source", ["folder", "compressed", "tables"])
def test_parts_are_scored_as_one_process_scores(model, sources, expected, tmp_path, source):
    detector = Detector.load(model, backend="torch")
    run = RunFolder(str(tmp_path / "out"))
    parts = plan(at(sources, source), 10)
    done = [score_part(detector, part, run) for part in parts]
    assert sum(part.images for part in done) == 42
    assert sum(part.errors for part in done) == 2
    failed = assert_complete(tmp_path / "out", expected)
    assert run.done(parts) == set(range(len(parts)))
    if source == "folder":
        assert failed == {"broken.png": "not an image, or of an unknown format", "empty.png": "empty file"}
    assert not list((tmp_path / "out" / "attempts").iterdir())
    assert score_part(detector, parts[0], run).images == 0  # done already


class KilledError(BaseException):
    """Stands for the death of the process."""


def killed_by(model, content, monkeypatch):
    """A detector that an image of this content kills."""
    detector = Detector.load(model, backend="torch")
    results = detector.results

    def deadly(images):
        for item in images.items:
            with contextlib.suppress(ImageError):
                if item.read() == content:
                    raise KilledError
        return results(images)

    monkeypatch.setattr(detector, "results", deadly)
    return detector


def test_an_image_that_kills_its_worker_becomes_an_error(model, sources, contents, expected, tmp_path, monkeypatch):
    part = next(part for part in plan(str(sources / "folder"), 10) if any("007.png" in file for file in part.files))
    run = RunFolder(str(tmp_path / "out"))
    detector = killed_by(model, contents["007.png"], monkeypatch)
    deaths = 0
    for _ in range(10):
        try:
            score_part(detector, part, run)
            break
        except KilledError:
            deaths += 1
    assert deaths == CAREFUL_AFTER + 2
    names = {Path(file).name for file in part.files}
    failed = assert_complete(tmp_path / "out", {name: expected[name] for name in names & expected.keys() - {"007.png"}})
    assert failed["007.png"] == "reading or scoring it killed the worker"
    assert failed.keys() == {"007.png"} | names - expected.keys()


def test_of_images_with_one_name_only_the_one_that_kills_is_lost(model, contents, tmp_path, monkeypatch):
    images = [contents[name] for name in ("003.png", "007.png", "broken.png", "011.png", "broken.png")]
    pq.write_table(pa.table({"image": images, "path": ["a.png"] * 4 + [None]}), tmp_path / "same.parquet")
    (part,) = plan(str(tmp_path / "same.parquet"), 10)
    run = RunFolder(str(tmp_path / "out"))
    detector = killed_by(model, contents["007.png"], monkeypatch)
    for _ in range(CAREFUL_AFTER + 2):
        with pytest.raises(KilledError):
            score_part(detector, part, run)
    score_part(detector, part, run)
    scores, _ = rows_of(tmp_path / "out")
    assert [Path(row["path"]).name for row in scores] == ["a.png"] * 2
    assert [(Path(name).name, reason) for name, reason in run.failed(part)] == [
        ("a.png", "reading or scoring it killed the worker"),
        ("a.png", "not an image, or of an unknown format"),
        ("4", "not an image, or of an unknown format"),
    ]


@pytest.mark.parametrize(("error", "times"), [(KilledError, CAREFUL_AFTER + 1), (OSError, CAREFUL_AFTER + 3)])
def test_an_image_that_was_in_progress_once_is_not_lost(model, sources, expected, tmp_path, monkeypatch, error, times):
    part = plan(str(sources / "folder"), 10)[0]
    run = RunFolder(str(tmp_path / "out"))
    detector = Detector.load(model, backend="torch")
    results, starts = detector.results, []

    def stopped(images):
        starts.append(len(images))
        if len(starts) <= times:
            raise error
        return results(images)

    monkeypatch.setattr(detector, "results", stopped)
    for _ in range(times):
        with pytest.raises(error):
            score_part(detector, part, run)
    score_part(detector, part, run)
    names = {Path(file).name for file in part.files}
    failed = assert_complete(tmp_path / "out", {name: expected[name] for name in names & expected.keys()})
    assert failed.keys() == names - expected.keys()


@pytest.mark.parametrize("url", ["s9://bucket/run", "abfs://bucket@x"])
def test_a_place_that_cannot_be_opened_is_one_line(url):
    with pytest.raises(InputError, match=r"'(s9|abfs)://"):
        RunFolder(url)


def test_errors_of_a_file_system_are_those_of_dlsr(monkeypatch):
    run = RunFolder(f"memory://{uuid.uuid4().hex}")

    def denied(*_, **__):
        raise RuntimeError("no\ncredentials")

    monkeypatch.setattr(type(run._fs), "pipe_file", denied)
    with pytest.raises(OutputError, match=r"cannot write 'memory://.*/run.json': no credentials; run the same again"):
        run.claim({})
    monkeypatch.setattr(type(run._fs), "exists", denied)
    with pytest.raises(OutputError, match=r"cannot open 'memory://.*': no credentials; give another folder"):
        run.claim({})


def test_only_the_rest_of_a_damaged_tar_is_lost(model, contents, tmp_path):
    write_tar(tmp_path / "a.tar.gz", {name: content for name, content in contents.items() if content})
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    run = RunFolder(str(tmp_path / "out"))
    (part,) = plan(str(tmp_path / "a.tar.gz"), 100)
    done = score_part(Detector.load(model, backend="torch"), part, run)
    scores, errors = rows_of(tmp_path / "out")
    assert done.images == len(scores) + len(errors)
    assert "the rest of this tar cannot be read" in errors[-1]["error"]


def test_damaged_files_do_not_stop_the_run(model, sources, expected, tmp_path):
    shutil.copytree(sources / "shards", tmp_path / "in")
    shutil.copy(sources / "tables" / "a.parquet", tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "bad.tar").write_bytes(b"no tar")
    (tmp_path / "in" / "bad.parquet").write_bytes(b"no table")
    parts = plan(str(tmp_path / "in"), 50)
    detector, run = Detector.load(model, backend="torch"), RunFolder(str(tmp_path / "out"))
    for part in parts:
        score_part(detector, part, run)
    scores, errors = rows_of(tmp_path / "out")
    in_table = pq.read_table(sources / "tables" / "a.parquet")["path"].to_pylist()
    assert len(scores) == len(expected) + len(set(in_table) & expected.keys())
    damaged = {Path(row["path"]).name for row in errors if "the rest of this part cannot be read" in row["error"]}
    assert damaged == {"bad.tar", "bad.parquet"}


def test_a_row_without_an_image_costs_that_row(model, contents, tmp_path):
    (good, *_) = contents.values()
    rows = {"image": [{"bytes": good, "path": None}, None, {"bytes": good, "path": None}]}
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(decode=False)})).save_to_disk(
        tmp_path / "in"
    )
    (part,) = plan(f"hf:{tmp_path / 'in'}", 10)
    done = score_part(Detector.load(model, backend="torch"), part, RunFolder(str(tmp_path / "out")))
    scores, errors = rows_of(tmp_path / "out")
    assert (done.images, len(scores)) == (3, 2)
    assert [row["error"] for row in errors] == ["the row holds no bytes"]


def test_errors_of_an_earlier_attempt_are_forgotten(model, sources, contents, tmp_path):
    """The worker was killed after it had written `errors/`, and the file can be read now."""
    run, (part, *_) = RunFolder(str(tmp_path)), plan(at(sources, "folder"), 15)
    readable = replace(part, files=tuple(file for file in part.files if "broken" not in file and "empty" not in file))
    (tmp_path / "errors").mkdir()
    stale = pa.table({"path": [readable.files[0]], "error": ["Stale file handle"]})
    pq.write_table(stale, tmp_path / "errors" / "part-000000.parquet")
    score_part(Detector.load(model, backend="torch"), readable, run)
    scores, errors = rows_of(tmp_path)
    assert (len(scores), errors) == (len(readable.files), [])


@pytest.mark.parametrize("source", ["folder", "one.tar", "compressed", "tables"])
def test_changed_files_are_another_collection(sources, tmp_path, source):
    place = tmp_path / source
    (shutil.copytree if (sources / source).is_dir() else shutil.copy2)(sources / source, place)
    before = digest_of(plan(str(place), 15))
    assert digest_of(plan(str(place), 15)) == before
    changed = sorted(path for path in (place, *place.rglob("*")) if path.is_file())[0]
    os.utime(changed, ns=(0, 0))
    after = digest_of(plan(str(place), 15))
    assert after != before
    assert digest_of(plan(str(place), 15)) == after


def test_changed_objects_are_another_collection():
    memory = fsspec.filesystem("memory")
    memory.pipe("/changing/a.png", b"12")
    before = digest_of(plan("memory://changing", 5))
    memory.pipe("/changing/a.png", b"123")
    assert digest_of(plan("memory://changing", 5)) != before
    memory.rm("/changing", recursive=True)


def test_files_that_killed_workers_left_are_not_taken_for_results(model, sources, expected, tmp_path):
    run, parts = RunFolder(str(tmp_path)), plan(at(sources, "folder"), 15)
    run.put_model(model)
    left = [f".writing-{uuid.uuid4().hex}-{name}" for name in ("part-000000.parquet", "model.json")]
    for folder in ("scores", "errors", "attempts", "model"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in left:
            (tmp_path / folder / name).write_bytes(b"half")
    assert run.done(parts) == set()
    detector = run.load_model(backend="torch")
    for part in parts:
        score_part(detector, part, run)
    assert_complete(tmp_path, expected)
    run.remove_temporary()
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []
    assert_complete(tmp_path, expected)


def test_the_model_of_a_run_is_copied_whole_though_it_is_being_replaced(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / f".writing-{uuid.uuid4().hex}-model.json").write_text("half")
    (folder / "numbers-0123456789abcdef.safetensors").write_text("of another model")
    RunFolder(str(tmp_path / "run")).put_model(folder)
    assert len(list((tmp_path / "run" / "model").iterdir())) == 2
    RunFolder(str(tmp_path / "run")).load_model(backend="torch")


def test_a_folder_with_another_run_is_refused(tmp_path):
    run = RunFolder(str(tmp_path / "out"))
    run.claim({"model": "a", "parts": "b"})
    run.claim({"model": "a", "parts": "b"})
    with pytest.raises(ArtifactError, match="holds a run with another model; delete it or give another folder"):
        run.claim({"model": "c", "parts": "b"})
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        run.claim({"model": "a", "parts": "b"})


# Ray


def on_ray(test):
    """Mark a test that uses the cluster."""
    return pytest.mark.slow(pytest.mark.usefixtures("cluster")(test))


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster, which runs in this process use too."""
    connect(ray, None, workers=2)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def kill_workers():
    workers = [pid for pid, name in children_of(os.getpid()).items() if name.startswith("ray::MapWorker")]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@on_ray
def test_ray_gives_the_scores_of_one_process_though_workers_are_killed(model, sources, expected, tmp_path):
    source, output = str(sources / "shards"), str(tmp_path / "out")
    options = {"workers": 2, "images_per_part": 2, "backend": "torch"}
    planned, finished = [], []

    def on_part(part):
        if not finished:
            kill_workers()
            assert len(list(Path(output, "scores").iterdir())) < 21, "nothing was left to score"
        finished.append(part)

    summary = score_with_ray(
        model, source, output, **options, on_plan=lambda *counts: planned.append(counts), on_part=on_part
    )
    assert planned == [(21, 0)]
    assert sorted(part.index for part in finished) == list(range(21))
    assert (summary.parts, summary.parts_before) == (21, 0)
    assert len(assert_complete(output, expected)) == 2
    with pytest.raises(ArtifactError, match="another false_alarm_rate"):
        score_with_ray(model, source, output, **options, false_alarm_rate=0.2)


@pytest.mark.slow
@on_ray
def test_a_run_resumes_after_its_driver_was_killed(run, cluster, model, sources, expected, tmp_path):
    output = tmp_path / "out"
    arguments = [
        "score", model, sources / "folder", "--output", output, "--engine", "ray", "--backend", "torch",
        "--images-per-part", "1", "--workers", "1",
    ]  # fmt: skip

    def parts_done():
        return len(list((output / "scores").glob("part-*.parquet"))) if (output / "scores").exists() else 0

    command = [sys.executable, "-m", "dlsr", *map(str, arguments), "--address", cluster]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: parts_done() >= 2 or driver.poll() is not None)
    driver.kill()
    _, printed = driver.communicate()
    assert 2 <= parts_done() < 42, printed
    resumed = run(*arguments, "--json")
    assert resumed.status == 0, resumed.err
    summary = json.loads(resumed.out)
    assert 2 <= summary["parts_before"] < 42
    assert f"{summary['parts_before']} of 42 parts were done before" in " ".join(resumed.err.split())
    assert len(assert_complete(output, expected)) == 2


def wait_until(condition):
    """Wait for another process; the limit is for a broken run on a slow machine."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@on_ray
def test_a_worker_that_fails_is_one_line(sources):
    class FailingActor:
        def __call__(self, batch):
            raise OutputError("cannot write 'out': no space left")

    parts = plan(str(sources / "folder"), 30)
    with pytest.raises(
        OutputError, match=r"^a worker failed: .*cannot write 'out': no space left; what is done"
    ) as caught:
        list(process_parts(ray, FailingActor, [], parts, None, 1, "cpu"))
    assert "\n" not in str(caught.value)


@on_ray
def test_a_fit_with_ray_is_the_fit_of_one_process_and_resumes(run, sources, tmp_path):
    source, output, encoding = str(sources / "one.tar"), tmp_path / "model", tmp_path / "model.encoding"

    def new_detector(store="store"):
        return Detector(**FITTED, store=tmp_path / store)

    detector, finished = new_detector(), []
    encoded = encode_with_ray(detector, source, str(encoding), workers=1, images_per_part=8, on_part=finished.append)
    assert sum(part.images for part in finished) == len(encoded.names) == 42
    assert sum(part.errors for part in finished) == len(encoded.unreadable) == 2
    with pytest.warns(UnreadableImagesWarning):
        detector.fit_encoded(encoded)
        alone = new_detector("another store").fit(source)
    assert detector.fit_summary_.training_images == alone.fit_summary_.training_images
    assert {Path(name).name for name in detector.fit_summary_.unreadable} == set(alone.fit_summary_.unreadable)
    assert detector.extractor_.spec == alone.extractor_.spec
    assert detector.extractor_.spec.pooling == "mean+std+max"
    assert encoded.z0.shape[1] == sum(alone.channels_)
    np.testing.assert_allclose(detector.calibration_scores_, alone.calibration_scores_, atol=1e-3)
    # A fit without Ray finds the features in the store.
    (shards,) = (tmp_path / "store").iterdir()
    before = set(shards.iterdir())
    with pytest.warns(UnreadableImagesWarning):
        new_detector().fit(source)
    assert set(shards.iterdir()) == before
    with pytest.raises(ArtifactError, match="another parts, source; delete it or give another folder"):
        encode_with_ray(new_detector(), str(sources / "shards"), str(encoding), images_per_part=8)
    # The command line resumes the same run, and leaves only the model.
    (encoding / "encoded" / "part-000001.parquet").unlink()
    fit = run(
        "fit", source, "--output", output, "--engine", "ray", "--workers", "1", "--images-per-part", "8", "--json",
        *(option for name, value in FITTED.items() for option in (f"--{name.replace('_', '-')}", value)),
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert fit.status == 0, fit.err
    assert "2 of 42 images could not be read" in fit.err
    assert json.loads(fit.out)["threshold"] == pytest.approx(detector.threshold_)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "store", "another store"}


def test_features_missing_from_the_store_are_an_error(sources, tmp_path):
    source, folder = str(sources / "one.tar"), str(tmp_path / "encoding")
    detector = Detector(**FITTED, store=tmp_path / "store")
    extractor, encoding = detector.prepare_extractor(), RunFolder(folder, ENCODED)
    parts = plan(source, 100)
    store = extractor.feature_store()
    for part in parts:
        encode_part(extractor.encoder, store, part, encoding)
    for shard in store.folder.iterdir():
        shard.unlink()
    with pytest.raises(ArtifactError, match=r"lacks features that '.*encoding' lists as encoded; delete"):
        encoded_images(encoding, parts, extractor.feature_store())


def test_a_fit_with_ray_needs_a_store(run, sources, tmp_path):
    fit = run("fit", sources / "tables", "--output", tmp_path / "m", "--engine", "ray", "--no-store")
    assert "needs a feature store" in fit.error


def test_a_fit_with_ray_keeps_no_thumbnails(run, sources, tmp_path):
    fit = run("fit", sources / "tables", "--output", tmp_path / "m", "--engine", "ray", "--thumbnails", "3")
    assert "--thumbnails" in fit.error
