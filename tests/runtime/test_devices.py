import pytest
import torch

from dlsr import SettingsError
from dlsr.runtime.devices import torch_device


def test_auto_is_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "no-such-device"])
def test_devices_that_cannot_be_used_are_refused(name):
    with pytest.raises(SettingsError, match="use --device auto") as caught:
        torch_device(name)
    assert "\n" not in str(caught.value)
