import pytest
import torch
from diffusers import DDIMScheduler

from dlsr.errors import SettingsError
from dlsr.method.diffusion import ddim_sigma, ddim_step, distort, predicted_noise, restore, skipping_steps
from dlsr.method.schedule import scaled_linear_alpha_bar

ALPHA_BAR = scaled_linear_alpha_bar()


def oracle():
    scheduler = DDIMScheduler(
        100,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(100)
    return scheduler


def denoiser(zt, t):
    """An arbitrary function of state and time."""
    return torch.tanh(zt) * (1 - t / 200) + 0.01 * t


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distort_is_add_noise_of_diffusers():
    z0, noise = draw(4, 6), draw(4, 6, seed=1)
    expected = oracle().add_noise(z0, noise, torch.tensor([6] * 4))
    torch.testing.assert_close(distort(z0, 7, ALPHA_BAR, noise), expected, atol=1e-5, rtol=0)
    times = torch.tensor([1, 7, 50, 100])
    expected = oracle().add_noise(z0, noise, times - 1)
    torch.testing.assert_close(distort(z0, times, ALPHA_BAR, noise), expected, atol=1e-5, rtol=0)
    assert torch.equal(distort(z0, 0, ALPHA_BAR, noise), z0)


def test_predicted_noise_is_the_noise_of_the_distortion():
    z0, noise = draw(4, 6), draw(4, 6, seed=1)
    zt = distort(z0, 30, ALPHA_BAR, noise)
    torch.testing.assert_close(predicted_noise(zt, z0, 30, ALPHA_BAR), noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("start", [1, 3, 10, 100])
def test_restore_is_ddim_of_diffusers(eta, start):
    scheduler, state = oracle(), draw(5, 8)
    later = draw(start, 5, 8, seed=2)
    steps = list(range(start, 0, -1))
    ours = restore(denoiser, state, steps, ALPHA_BAR, eta, later[: start - 1])
    for i, t in enumerate(steps):
        prediction = denoiser(state, t)
        state = scheduler.step(prediction, t - 1, state, eta=eta, variance_noise=later[i]).prev_sample
    torch.testing.assert_close(ours, state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, prediction, atol=1e-5, rtol=1e-5)  # the last state is the predicted z0


def test_restore_with_skipped_steps_is_ddim_of_diffusers():
    scheduler = oracle()
    scheduler.set_timesteps(10)  # t = 91, 81, .., 1
    state = draw(5, 8)
    steps = [int(t) + 1 for t in scheduler.timesteps]
    ours = restore(denoiser, state, steps, ALPHA_BAR)
    for t in scheduler.timesteps:
        state = scheduler.step(denoiser(state, int(t) + 1), t, state, eta=0.0).prev_sample
    torch.testing.assert_close(ours, state, atol=1e-5, rtol=1e-5)


def test_a_stochastic_step_has_the_variance_of_the_forward_process():
    """With the true z0, the state after a step is distributed as distort(z0, t_next)."""
    z0 = torch.zeros(200_000, 1)
    zt = distort(z0, 60, ALPHA_BAR, draw(200_000, 1))
    state = ddim_step(zt, z0, 60, 20, ALPHA_BAR, eta=1.0, noise=draw(200_000, 1, seed=1))
    assert state.var() == pytest.approx(float(1 - ALPHA_BAR[20]), rel=0.02)
    assert ddim_sigma(60, 0, ALPHA_BAR, eta=1.0) == 0


def test_a_perfect_denoiser_restores_exactly():
    z0 = draw(3, 4)
    zt = distort(z0, 10, ALPHA_BAR, draw(3, 4, seed=1))
    restored = restore(lambda state, t: z0, zt, [10, 5, 2], ALPHA_BAR, 1.0, draw(2, 3, 4, seed=2))
    assert torch.equal(restored, z0)


@pytest.mark.parametrize("steps", [[], [3, 3], [1, 2], [101], [3, 0]])
def test_steps_that_are_empty_not_decreasing_or_out_of_range_are_refused(steps):
    with pytest.raises(SettingsError, match=r"1\.\.100"):
        restore(denoiser, draw(1, 2), steps, ALPHA_BAR)


def test_stochastic_steps_need_noise():
    with pytest.raises(SettingsError, match="noise"):
        restore(denoiser, draw(1, 2), [3, 2], ALPHA_BAR, eta=1.0)


def test_skipping_steps_are_evenly_spaced():
    assert skipping_steps(9, 3) == [9, 6, 3]
    assert skipping_steps(5, 5) == [5, 4, 3, 2, 1]
    assert skipping_steps(7, 1) == [7]
    with pytest.raises(SettingsError):
        skipping_steps(2, 3)
