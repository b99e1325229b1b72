import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import children_of
from dlsr import ArtifactError, Detector, InputError, NoImagesError, SettingsError, UnreadableImagesWarning
from dlsr.errors import ImageError
from dlsr.scale.parts import FEW_SHARDS, Part, items_of, plan
from dlsr.scale.ray_engine import encode_with_ray, score_with_ray
from dlsr.scale.run import CAREFUL_AFTER, RunFolder
from dlsr.scale.tasks import score_part


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
    """The same images as every kind of source."""
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
    import datasets

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


def test_sources_behind_a_url(contents):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in contents.items():
        memory.pipe_file(f"/bucket/images/{name}", content)
    items = [item for part in plan("memory://bucket/images", 20) for item in items_of(part)]
    assert sorted(item.read() for item in items) == sorted(contents.values())


def test_many_shards_are_not_listed(tmp_path, contents):
    some = dict(list(contents.items())[:2])
    for i in range(FEW_SHARDS + 1):
        write_tar(tmp_path / f"{i:03}.tar", some)
    parts = plan(str(tmp_path), 1)
    assert len(parts) == FEW_SHARDS + 1
    assert [item.read() for item in items_of(parts[0])] == list(some.values())


def test_what_users_get_wrong(tmp_path, sources):
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
    with pytest.raises(InputError, match="no column with image bytes; call it one of image, jpg"):
        list(items_of(plan(str(tmp_path / "b.parquet"), 10)[0]))


# Scoring a part


def rows_of(output):
    """Results and errors of a run, by the last part of the name."""
    scores = pyarrow.dataset.dataset(f"{output}/scores").to_table().to_pylist()
    failed = Path(output) / "errors"
    errors = pyarrow.dataset.dataset(failed).to_table().to_pylist() if failed.is_dir() else []
    return scores, errors


def assert_complete(output, expected):
    """Every image once, with the score that one process gives it."""
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
    """What one process says of each image."""
    results = Detector.load(model, backend="torch").results(odd_folder)
    return {result.path.rsplit("/", 1)[-1]: result for result in results}


@pytest.mark.parametrize("source", ["folder", "compressed", "tables"])
def test_parts_are_scored_as_one_process_scores(model, sources, expected, tmp_path, source):
    detector = Detector.load(model, backend="torch")
    run = RunFolder(str(tmp_path / "out"))
    parts = plan(at(sources, source), 10)
    done = [score_part(detector, part, run) for part in parts]
    assert sum(one.images for one in done) == 42
    assert sum(one.errors for one in done) == 2
    failed = assert_complete(tmp_path / "out", expected)
    assert run.done(parts) == set(range(len(parts)))
    if source == "folder":
        assert failed == {"broken.png": "not an image, or of an unknown format", "empty.png": "empty file"}
    assert not list((tmp_path / "out" / "attempts").iterdir())
    assert score_part(detector, parts[0], run).images == 0  # done already


def test_an_image_that_kills_its_worker_is_found(model, sources, contents, expected, tmp_path, monkeypatch):
    run = RunFolder(str(tmp_path / "out"))
    (part,) = plan(str(sources / "folder"), 100)
    detector = Detector.load(model, backend="torch")
    results = detector.results

    class KilledError(BaseException):
        pass

    def deadly(images):
        for item in images.items:
            with contextlib.suppress(ImageError):
                if item.read() == contents["007.png"]:
                    raise KilledError
        return results(images)

    monkeypatch.setattr(detector, "results", deadly)
    deaths = 0
    for _ in range(10):
        try:
            score_part(detector, part, run)
            break
        except KilledError:
            deaths += 1
    assert deaths == CAREFUL_AFTER + 1
    without = {name: result for name, result in expected.items() if name != "007.png"}
    failed = assert_complete(tmp_path / "out", without)
    assert failed["007.png"] == "reading or scoring it killed the worker"
    assert len(failed) == 3


def test_a_damaged_shard_costs_its_rows_alone(model, contents, tmp_path):
    write_tar(tmp_path / "a.tar.gz", {name: content for name, content in contents.items() if content})
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    run = RunFolder(str(tmp_path / "out"))
    (part,) = plan(str(tmp_path / "a.tar.gz"), 100)
    done = score_part(Detector.load(model, backend="torch"), part, run)
    scores, errors = rows_of(tmp_path / "out")
    assert done.images == len(scores) + len(errors)
    assert "the rest of this part cannot be read" in errors[-1]["error"]


def test_damaged_files_among_others_do_not_stop_the_run(model, sources, expected, tmp_path):
    import shutil

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


def test_another_run_is_not_mixed_in(tmp_path):
    run = RunFolder(str(tmp_path / "out"))
    run.claim({"model": "a", "parts": "b"})
    run.claim({"model": "a", "parts": "b"})
    with pytest.raises(ArtifactError, match="holds a run with another model; delete it or give another folder"):
        run.claim({"model": "c", "parts": "b"})
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        run.claim({"model": "a", "parts": "b"})


# Ray


def test_ray_scores_what_one_process_scores_and_goes_on(model, sources, expected, tmp_path):
    told = []
    options = {"workers": 2, "images_per_part": 8, "backend": "torch"}
    source, output = str(sources / "shards"), str(tmp_path / "out")
    summary = score_with_ray(model, source, output, **options, on_part=told.append)
    assert (summary.images, summary.errors, summary.parts_before) == (42, 2, 0)
    assert summary.parts == len(told) == 6
    assert len(assert_complete(output, expected)) == 2
    Path(output, "scores", "part-000002.parquet").unlink()
    again = score_with_ray(model, source, output, **options)
    assert (again.parts_before, again.images) == (5, told[0].images)
    assert len(assert_complete(output, expected)) == 2
    with pytest.raises(ArtifactError, match="another false_alarm_rate"):
        score_with_ray(model, source, output, **options, false_alarm_rate=0.2)


# Fitting


def made_detector(root):
    return Detector(
        "test_resnet", weights="random", backend="torch", width=32, epochs=3, false_alarm_rate=0.2, store=root / "store"
    )


def test_a_fit_by_ray_is_the_fit_of_one_process(sources, tmp_path):
    source, folder = str(sources / "one.tar"), str(tmp_path / "encoding")
    told, plans = [], []
    detector = made_detector(tmp_path)
    encoded = encode_with_ray(detector, source, folder, images_per_part=8, on_part=told.append)
    assert sum(one.images for one in told) == len(encoded.names) == 42
    assert sum(one.errors for one in told) == len(encoded.unreadable) == 2
    with pytest.warns(UnreadableImagesWarning):
        detector.fit_encoded(encoded)
        here = made_detector(tmp_path / "other").fit(source)
    assert detector.fit_summary_.training_images == here.fit_summary_.training_images
    assert {Path(name).name for name in detector.fit_summary_.unreadable} == set(here.fit_summary_.unreadable)
    assert detector.threshold_ == pytest.approx(here.threshold_, abs=1e-2)
    np.testing.assert_allclose(
        [entry.train_loss for entry in detector.fit_summary_.log],
        [entry.train_loss for entry in here.fit_summary_.log],
        rtol=1e-3,
    )
    # The same run again does what is missing; the features are those of the store that a fit here uses.
    Path(folder, "encoded", "part-000001.parquet").unlink()
    again = encode_with_ray(
        made_detector(tmp_path), source, folder, images_per_part=8, on_plan=lambda *plan: plans.append(plan)
    )
    assert plans == [(6, 5)]
    np.testing.assert_array_equal(again.z0, encoded.z0)
    (shards,) = (tmp_path / "store").iterdir()
    before = set(shards.iterdir())
    made_detector(tmp_path).prepare_encoder()
    with pytest.warns(UnreadableImagesWarning):
        made_detector(tmp_path).fit(source)
    assert set(shards.iterdir()) == before
    with pytest.raises(ArtifactError, match="another parts, source; delete it or give another folder"):
        encode_with_ray(made_detector(tmp_path), str(sources / "shards"), folder, images_per_part=8)
    for shard in before:
        shard.unlink()
    with pytest.raises(ArtifactError, match=r"has lost features that '.*encoding' says it has; delete the latter"):
        encode_with_ray(made_detector(tmp_path), source, folder, images_per_part=8)


def test_the_command_line_fits_by_ray_and_leaves_nothing_beside_the_model(sources, tmp_path):
    command = [
        sys.executable, "-m", "dlsr", "fit", str(sources / "tables"), "--output", str(tmp_path / "model"),
        "--engine", "ray", "--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--epochs", "2",
        "--store", str(tmp_path / "store"), "--images-per-part", "20", "--json",
        "--false-alarm-rate", "0.2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 of 42 images could not be read" in done.stderr
    assert json.loads(done.stdout)["training_images"] > 20
    assert {path.name for path in tmp_path.iterdir()} == {"model", "store"}
    refused = subprocess.run([*command, "--no-store"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "feature store" in refused.stderr
    thumbnails = subprocess.run([*command, "--thumbnails", "3"], capture_output=True, text=True, check=False)
    assert (thumbnails.returncode, thumbnails.stderr.count("\n")) == (2, 1)


COMMAND = [sys.executable, "-m", "dlsr", "score", "--engine", "ray", "--backend", "torch", "--images-per-part", "2"]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_nothing_is_lost_when_a_process_is_killed(model, sources, expected, tmp_path, victim):
    output = tmp_path / "out"
    command = [*COMMAND, str(model), str(sources / "folder"), "--output", str(output), "--workers", "2"]

    def parts_done():
        return len(list((output / "scores").glob("part-*.parquet"))) if (output / "scores").exists() else 0

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: parts_done() >= 2 or process.poll() is not None)
    if victim == "worker":
        actors = [pid for pid, name in children_of(process.pid).items() if name.startswith("ray::MapWorker")]
        assert actors
        os.kill(actors[0], signal.SIGKILL)
    else:
        below = children_of(process.pid)
        process.kill()
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    _, said = process.communicate(timeout=240)
    if victim == "driver":
        before = parts_done()
        assert 2 <= before < 21
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        said = process.stderr
        assert f"{before} of 21 parts were done before" in " ".join(said.split())
    assert process.returncode == 0, said
    assert len(assert_complete(output, expected)) == 2
    assert json.loads((output / "run.json").read_text())["schema"] == 1
    assert not list(output.rglob(".writing-*"))


def test_command_line_errors_are_one_line(model, sources, tmp_path):
    without = subprocess.run([*COMMAND, str(model), str(sources)], capture_output=True, text=True, check=False)
    assert (without.returncode, without.stderr) == (2, "error: --engine ray needs --output FOLDER\n")


def test_thumbnails_of_any_image(photographs):
    from dlsr.encoding.examples import thumbnail

    with Image.open(io.BytesIO(thumbnail(photographs[0], 50))) as small:
        assert small.format == "JPEG"
        assert max(small.size) == 50
