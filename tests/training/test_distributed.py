import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from dlsr import Detector, SettingsError
from dlsr.training import data, loop
from dlsr.training.distributed import ALONE, Ranks, joined
from dlsr.training.loop import Draws
from shared import children_of

TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Its launcher for several GPUs; without any, the processes take gloo.
LAUNCHED = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
            "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip

FIT = """
import json, os, sys, time
import numpy as np
from dlsr import SCORES, Detector
from dlsr.training import loop as training
from dlsr.training.distributed import joined

training.uses_bfloat16 = lambda *_: False  # whose rounding would hide small errors
score, output, checkpoint, blocks = sys.argv[1:5]
random = np.random.default_rng(0)
# An odd number of rows and of a batch: no share is as large as the other, and the last batch has one row.
features = (random.standard_normal((716, 4)) @ random.standard_normal((4, 24))).astype(np.float32)
if blocks == "blocks":
    from dlsr.training import data as rows
    rows.IN_MEMORY_BYTES, rows.BLOCK_BYTES, rows.BUFFER_BYTES = 0, 2**12, 2**14
lr = 3e-4 if score == "feature-vae" else 3e-3  # its deep network blows rounding up at the larger one
settings = {"width": 32, "blocks": 1, "epochs": 6, "batch_size": 33, "lr": lr}
known = SCORES[score].Settings.model_fields
settings = {name: value for name, value in settings.items() if name in known}
detector = Detector(score=score, group_by="none", seed=1, **settings)
with joined() as ranks:

    def tell(entry, total):
        if ranks.is_first:
            print(entry.epoch, ranks.size, flush=True)
            time.sleep(float(os.environ.get("PAUSE", "0")))  # in which a test may kill it

    detector.fit_features(features, (8, 16), checkpoint=checkpoint, on_epoch=tell, ranks=ranks)
    if ranks.is_first:
        detector.save(output)
"""


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def fit(start, tmp_path, name, score="residual", blocks="memory"):
    (tmp_path / "fit.py").write_text(FIT)
    command = [*start, str(tmp_path / "fit.py"), score, str(tmp_path / name), str(tmp_path / f"{name}.c"), blocks]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{epoch} 2" for epoch in range(1, 7)]
    return losses(tmp_path / name), tensors(tmp_path / name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same fit by a single process, this one; each is made once."""
    made = {}

    def fitted(score="residual", blocks="memory"):
        if (score, blocks) not in made:
            folder = tmp_path_factory.mktemp("alone")
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            with pytest.MonkeyPatch.context() as patch:
                # What the script sets is undone.
                patch.setattr(loop, "uses_bfloat16", loop.uses_bfloat16)
                for name in ("IN_MEMORY_BYTES", "BLOCK_BYTES", "BUFFER_BYTES"):
                    patch.setattr(data, name, getattr(data, name))
                patch.setattr(sys, "argv", ["fit.py", score, str(folder / "model"), str(folder / "c"), blocks])
                exec(compile(FIT, "fit.py", "exec"), {"__name__": "__main__"})
            torch.set_num_threads(threads)
            made[score, blocks] = losses(folder / "model"), tensors(folder / "model")
        return made[score, blocks]

    return fitted


def losses(model):
    log = json.loads((model / "model.json").read_text())["fit"]["log"]
    return np.array([[entry["train_loss"], entry["validation_loss"]] for entry in log])


def tensors(model):
    (path,) = model.glob("numbers-*.safetensors")
    return safetensors.torch.load_file(path)


def test_shares_are_all_rows_and_nearly_equal():
    for n in range(20):
        for size in range(1, 6):
            shares = [list(range(n))[Ranks(rank, size).share(n)] for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.is_first
    assert ALONE.share(7) == slice(0, 7)


def test_a_rows_random_numbers_do_not_depend_on_who_has_it():
    def drawn(share):
        draws = Draws(torch.Generator().manual_seed(0), 9, share)
        return draws.integers(1, 100), draws.normal(3), draws.uniform(2, 2)

    whole = drawn(slice(None))
    for rank in range(2):
        share = Ranks(rank, 2).share(9)
        assert all(torch.equal(mine, all_of[share]) for mine, all_of in zip(drawn(share), whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "blocks"),
    [("residual", "memory"), ("mfsim", "memory"), ("feature-vae", "memory"), ("residual", "blocks")],
)
def test_two_processes_train_as_one(tmp_path, alone, score, blocks):
    one, numbers = alone(score, blocks)
    two, same_numbers = fit(TOGETHER, tmp_path, "two", score, blocks)
    assert one[-1, 0] < 0.95 * one[0, 0], "it must learn something"
    np.testing.assert_allclose(two, one, rtol=1e-5)
    for name, tensor in numbers.items():
        torch.testing.assert_close(same_numbers[name], tensor, rtol=1e-2, atol=1e-3)


def test_accelerate_launch_starts_it_too(tmp_path, alone):
    one, _ = alone()
    two, _ = fit(LAUNCHED, tmp_path, "two")
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.slow
def test_killed_processes_resume_from_the_checkpoint_of_the_first(tmp_path, alone):
    one, _ = alone()
    (tmp_path / "fit.py").write_text(FIT)
    command = [
        *TOGETHER,
        str(tmp_path / "fit.py"),
        "residual",
        str(tmp_path / "two"),
        str(tmp_path / "two.c"),
        "memory",
    ]
    slowly = environment() | {"PAUSE": "0.3"}
    killed = subprocess.Popen(command, env=slowly, stdout=subprocess.PIPE, text=True)
    for line in killed.stdout:
        if line == "2 2\n":
            for pid in [*children_of(killed.pid), killed.pid]:
                os.kill(pid, signal.SIGKILL)
            break
    killed.wait()
    assert not (tmp_path / "two").exists()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=300)
    epochs = [int(line.split()[0]) for line in again.stdout.splitlines()]
    assert epochs[0] > 2, "it must resume, not start again"
    assert epochs[-1] == 6
    np.testing.assert_allclose(losses(tmp_path / "two"), one, rtol=1e-5)


OPTIONS = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--score", "residual",
           "--width", "32", "--epochs", "3", "--false-alarm-rate", "0.2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("keeping", [True, False])
def test_the_command_line_fits_together_and_prints_once(odd_folder, tmp_path, keeping):
    photos = tmp_path / "photos"
    shutil.copytree(odd_folder, photos)
    (photos / "broken.png").write_bytes(b"broken")
    told = []
    for start, name in (([sys.executable], "one"), ([*TOGETHER, "--no-python", sys.executable], "two")):
        store = ["--store", str(tmp_path / f"{name}-store")] if keeping else ["--no-store"]
        command = [*start, "-m", "dlsr", "fit", str(photos), *OPTIONS, *store, "--output", str(tmp_path / name)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stderr.splitlines() if "fitted to" in line or "broken.png" in line])
        assert not (tmp_path / f"{name}.checkpoint").exists()
        assert (tmp_path / f"{name}-store").exists() == keeping
    assert len(told[1]) == len(told[0]) == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3)
    one, two = (Detector.load(tmp_path / name, backend="torch").threshold_ for name in ("one", "two"))
    assert two == pytest.approx(one, abs=0.05)


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(SettingsError, match=r"^cannot join the other processes: .*torchrun or accelerate launch$"),
        joined(),
    ):
        pass
