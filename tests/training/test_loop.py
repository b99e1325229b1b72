import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dlsr import ArtifactError, Detector, SettingsError
from dlsr.config import TrainingSettings
from dlsr.method.lfdn import LFDN
from dlsr.method.schedule import scaled_linear_alpha_bar
from dlsr.scorers import resolve
from dlsr.scorers.paper import restoration_loss
from dlsr.training.checkpoint import Checkpoint
from dlsr.training.data import Samples
from dlsr.training.loop import learning_rate, most_epochs, new_state, train
from shared import small

ALPHA_BAR = scaled_linear_alpha_bar(20, 0.01, 0.3)


def small_network():
    torch.manual_seed(0)
    return LFDN(6, 16, 1)


def rows(n=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.randn(2, 6, generator=torch.Generator().manual_seed(5))


def run(settings, state=None, epochs=None):
    network = small_network()
    state = state or new_state(network)
    for done in train(
        network, Samples(rows()), rows(64, 1), partial(restoration_loss, network, ALPHA_BAR), settings, 0, state
    ):
        state = done
        if done.epoch == epochs:
            break
    return state


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SETTINGS = TrainingSettings(epochs=6, batch_size=32, lr=3e-3, lr_decay="cosine", ema_decay=0.9)


def test_training_lowers_the_held_out_loss():
    log = run(SETTINGS).log
    assert len(log) == 6
    assert log[-1].validation_loss < 0.8 * log[0].validation_loss
    assert log[-1].train_loss < log[0].train_loss


def test_resumed_is_the_same_as_uninterrupted(tmp_path):
    whole = run(SETTINGS)
    checkpoint = Checkpoint(tmp_path / "c", "key")
    checkpoint.save(run(SETTINGS, epochs=3))
    loaded = checkpoint.load()
    assert loaded.epoch == 3
    resumed = run(SETTINGS, loaded)
    assert resumed.log == whole.log
    for part in ("network", "ema", "optimizer", "initial", "best"):
        assert same(getattr(resumed, part), getattr(whole, part)), part


def test_training_goes_on_with_the_tensors_of_the_state_instead_of_copies():
    given, network = run(SETTINGS, epochs=2), small_network()
    before = given.optimizer | given.ema
    loss = partial(restoration_loss, network, ALPHA_BAR)
    after = next(train(network, Samples(rows()), rows(64, 1), loss, SETTINGS, 0, given))
    assert all((after.optimizer | after.ema)[name].data_ptr() == held.data_ptr() for name, held in before.items())
    for held in (given.network, new_state(network).network):
        assert all(held[name].data_ptr() == tensor.data_ptr() for name, tensor in network.named_parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_initial_network_is_that_of_the_first_epoch():
    assert same(run(SETTINGS).initial, run(SETTINGS, epochs=1).ema)


class Counting(nn.Module):
    """A network with a buffer that changes in training, and with dropout."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, z0):
        return self.dropout(self.norm(self.linear(z0)))


def counted(state=None, epochs=6):
    torch.manual_seed(0)
    network = Counting()
    state = state or new_state(network)
    loss = lambda z0, draws: (network(z0) - z0).square().mean()  # noqa: E731
    torch.manual_seed(torch.seed())  # the global generator is anywhere when a fit resumes
    for done in train(network, Samples(rows()), rows(64, 1), loss, SETTINGS, 0, state):
        state = done
        if done.epoch == epochs:
            break
    return state


def test_the_averaged_network_has_the_buffers_of_the_trained_one():
    state = counted()
    assert state.network["norm.num_batches_tracked"] > 0
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(state.ema[name], state.network[name]), name


def test_a_network_that_draws_numbers_itself_resumes_exactly(tmp_path):
    whole = counted()
    checkpoint = Checkpoint(tmp_path / "c", "key")
    checkpoint.save(counted(epochs=2))
    resumed = counted(checkpoint.load())
    assert resumed.log == whole.log
    assert same(resumed.network, whole.network)


@pytest.mark.parametrize("diverges", ["training", "validation"])
def test_a_training_that_diverges_is_an_error_with_a_remedy(diverges):
    network = small_network()

    def loss(samples, draws):
        lost = math.inf if network.training == (diverges == "training") else 0.0
        return network(samples, torch.ones(len(samples), dtype=torch.long)).square().mean() + lost

    with pytest.raises(SettingsError, match=r"diverged in epoch 1, .* finite number; lower the learning rate"):
        list(train(network, Samples(rows()), rows(64, 1), loss, SETTINGS, 0, new_state(network)))


def test_training_stops_when_it_no_longer_pays():
    settings = TrainingSettings(epochs=400, batch_size=256, lr=0.05, ema_decay=0, patience=2)
    state = run(settings)
    assert state.epoch < 400
    assert state.epoch == state.best_epoch + 2
    assert min(e.validation_loss for e in state.log) == state.log[state.best_epoch - 1].validation_loss


def test_learning_rate():
    assert learning_rate(SETTINGS, 0, 100) == pytest.approx(3e-3)
    assert learning_rate(SETTINGS, 50, 100) == pytest.approx(1.5e-3)
    assert learning_rate(TrainingSettings(), 99, 100) == 1e-4


def test_a_checkpoint_of_another_training_is_not_taken_up(tmp_path):
    Checkpoint(tmp_path / "c", "one").save(run(SETTINGS, epochs=1))
    assert Checkpoint(tmp_path / "c", "two").load() is None
    assert Checkpoint(tmp_path / "none", "one").load() is None


def test_a_checkpoint_of_other_layers_is_not_resumed(tmp_path):
    features = np.random.default_rng(0).standard_normal((200, 30)).astype(np.float32)

    def epochs(channels, stop_after=None):
        done = []

        def on_epoch(entry, most):
            done.append(entry.epoch)
            if entry.epoch == stop_after:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            detector = Detector(**small("residual", epochs=3))
            detector.fit_features(features, channels, checkpoint=tmp_path / "c", on_epoch=on_epoch)
        return done

    assert epochs((10, 20), stop_after=1) == [1]
    assert epochs((10, 20), stop_after=2) == [2]
    assert epochs((15, 15)) == [1, 2, 3]


PAPER = {"preset": "paper", "width": 16, "blocks": 1, "batch_size": 32}
"""A tiny network, trained at a constant learning rate as the paper's is."""


def paper_fit(checkpoint=None, stop_after=None, **changes):
    """A detector, and the epochs that it was trained."""
    features, done = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32), []

    def on_epoch(entry, most):
        done.append((entry.epoch, most))
        if entry.epoch == stop_after:
            raise KeyboardInterrupt

    detector = Detector(**PAPER | changes)
    with contextlib.suppress(KeyboardInterrupt):
        detector.fit_features(features, checkpoint=checkpoint, on_epoch=on_epoch)
    return detector, done


@pytest.mark.parametrize("before", [1, 2])
def test_a_longer_training_goes_on_from_a_shorter_one_and_ends_as_if_it_were_one(tmp_path, before):
    whole, _ = paper_fit(epochs=3)
    _, done = paper_fit(tmp_path / "c", epochs=before)
    assert done == [(i + 1, before) for i in range(before)]
    longer, done = paper_fit(tmp_path / "c", epochs=3)
    assert done == [(i + 1, 3) for i in range(before, 3)]
    assert same(longer.scorer_.state_dict(), whole.scorer_.state_dict())
    assert longer.fit_summary_.log == whole.fit_summary_.log
    assert longer.threshold_ == whole.threshold_


def test_a_longer_training_with_a_falling_learning_rate_starts_again(tmp_path):
    whole, _ = paper_fit(epochs=3, lr_decay="cosine")
    paper_fit(tmp_path / "c", epochs=1, lr_decay="cosine")
    longer, done = paper_fit(tmp_path / "c", epochs=3, lr_decay="cosine")
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert same(longer.scorer_.state_dict(), whole.scorer_.state_dict())


def test_a_checkpoint_of_more_epochs_than_asked_for_is_not_taken_up(tmp_path):
    paper_fit(tmp_path / "c", epochs=3)
    shorter, done = paper_fit(tmp_path / "c", epochs=2)
    assert done == [(1, 2), (2, 2)]
    assert same(shorter.scorer_.state_dict(), paper_fit(epochs=2)[0].scorer_.state_dict())


@pytest.mark.parametrize("changes", [{"lr": 2e-4}, {"batch_size": 16}, {"seed": 1}, {"width": 32}])
def test_a_longer_training_of_other_settings_starts_again(tmp_path, changes):
    paper_fit(tmp_path / "c", epochs=1)
    assert paper_fit(tmp_path / "c", epochs=2, **changes)[1] == [(1, 2), (2, 2)]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    Checkpoint(path, "key").save(run(SETTINGS, epochs=1))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="delete it"):
        Checkpoint(path, "key").load()


FIT = """
import sys, numpy as np
from dlsr import Detector
random = np.random.default_rng(0)
features = random.standard_normal((3000, 4)) @ random.standard_normal((4, 32))
detector = Detector(score="residual", width=128, blocks=2, epochs=12, seed=1)
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None
report = lambda entry, total: print(entry.epoch, flush=True)
detector.fit_features(features, checkpoint=checkpoint, on_epoch=report).save(sys.argv[1])
"""


def numbers(folder):
    (path,) = folder.glob("numbers-*.safetensors")
    return safetensors.torch.load_file(path)


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_the_same(tmp_path):
    def command(*arguments):
        return [sys.executable, "-c", FIT, *map(str, arguments)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    checkpoint = tmp_path / "checkpoint"
    killed = subprocess.Popen(command(tmp_path / "model", checkpoint), env=environment, stdout=subprocess.PIPE)
    for line in killed.stdout:
        if int(line) == 3:
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "model").exists()
    again = subprocess.run(
        command(tmp_path / "model", checkpoint), env=environment, check=True, capture_output=True, text=True
    )
    epochs = [int(line) for line in again.stdout.split()]
    assert epochs[0] > 3, "it must resume, not start again"
    assert epochs[-1] == 12
    assert same(numbers(tmp_path / "model"), numbers(tmp_path / "whole"))


def test_a_process_killed_while_writing_leaves_no_half_file(tmp_path):
    script = """
import sys, pathlib
from dlsr.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("written", flush=True)
    import time; time.sleep(60)
"""
    target = tmp_path / "file.bin"
    target.write_bytes(b"before")
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.wait()
    time.sleep(0.1)
    assert target.read_bytes() == b"before"


@pytest.mark.parametrize(("n", "epochs"), [(100_000, 4), (1000, 150), (10, 600)])
def test_small_sets_get_more_epochs(n, epochs):
    settings = TrainingSettings(epochs=4, min_steps=600, batch_size=256)
    assert most_epochs(settings, n) == epochs
    assert most_epochs(resolve(score="residual", changes={"epochs": 4}).scorer, n) == 4, "an explicit number is kept to"
