import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from dlsr.errors import SettingsError
from dlsr.method.schedule import cosine_alpha_bar, scaled_linear_alpha_bar


def test_scaled_linear_is_that_of_diffusers_with_t_shifted_by_one():
    theirs = DDIMScheduler(100, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear").alphas_cumprod
    ours = scaled_linear_alpha_bar()
    assert ours[0] == 1
    np.testing.assert_allclose(ours[1:], theirs, atol=1e-5)
    assert ours[100] == pytest.approx(0.41, abs=0.005)
    assert (1 - ours[4]).sqrt() == pytest.approx(0.08, abs=0.001)  # t = 3 in the published code


def test_cosine_decreases_to_the_given_end():
    alpha_bar = cosine_alpha_bar(50, end=1e-3)
    assert alpha_bar.shape == (51,)
    assert alpha_bar[0] == 1
    assert alpha_bar[50] == pytest.approx(1e-3, rel=1e-3)
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: scaled_linear_alpha_bar(0),
        lambda: scaled_linear_alpha_bar(10, 0.5, 0.1),
        lambda: scaled_linear_alpha_bar(10, 0.1, 1.0),
        lambda: cosine_alpha_bar(10, 0.0),
        lambda: cosine_alpha_bar(-1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(SettingsError):
        make()


def test_schedules_can_have_a_single_step():
    assert torch.equal(scaled_linear_alpha_bar(1), torch.tensor([1.0, 1 - 0.0015]))
    assert cosine_alpha_bar(1).shape == (2,)
