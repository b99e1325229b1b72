import sys

import pytest
import torch

from dlsr import MissingExtraError, SettingsError
from dlsr.runtime import devices
from dlsr.runtime.devices import resolve_device


def test_auto_is_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(devices, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


def test_pytorch_is_not_asked_where_no_gpu_can_be(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_SIGNS_OF_A_GPU", ())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


def test_another_device_needs_pytorch(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[fit\]"):
        resolve_device("cuda")


def test_the_cpu_has_one_name():
    assert resolve_device("cpu:0") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "no-such-device"])
def test_devices_that_cannot_be_used_are_refused(name):
    with pytest.raises(SettingsError, match="use --device auto") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)
