"""Device names."""

import torch

from dlsr.errors import SettingsError


def torch_device(name: str) -> torch.device:
    """The device for a name: `auto` (a GPU if there is one), `cpu`, `cuda`, ..

    Raises:
        SettingsError: if the device does not exist or cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"cannot use device '{name}' ({str(error).splitlines()[0]}); use --device auto") from error
    return device
