import numpy as np
import pytest

from dlsr import SettingsError
from dlsr.calibration.drift import window_test
from dlsr.watch.drifting import RunningDrift

random = np.random.default_rng(0)
CALIBRATION = random.standard_normal(500)


def running(groups=None, window=100, alpha=0.001):
    return RunningDrift(CALIBRATION, groups, window=window, alpha=alpha)


def test_the_verdict_is_that_of_the_last_window():
    drift, scores = running(), [*random.standard_normal(200), *(2 + random.standard_normal(200))]
    verdicts = []
    for i, score in enumerate(scores):
        drift.add(score)
        if i < 19:
            assert drift.verdict is None
        else:
            verdicts.append(drift.verdict)
            assert drift.verdict.images <= 100
    assert not verdicts[150].drifted
    assert verdicts[-1].drifted
    assert verdicts[-1].p_value == window_test(np.array(scores[-100:]), CALIBRATION).p_value
    assert len({verdict.p_value for verdict in verdicts}) <= 400 / 10 + 1
    for score in random.standard_normal(100):
        drift.add(score)
    assert not drift.verdict.drifted


def test_earlier_scores_are_taken_up():
    scores = 2 + random.standard_normal(150)
    drift = running()
    drift.restore(scores)
    assert drift.verdict.drifted
    assert drift.verdict.images == 100


def test_of_each_group_one_image_counts():
    groups = np.repeat(np.arange(5), 100)
    drift = running(groups)
    drift.restore(2 + random.standard_normal(100))
    alone = running()
    alone.restore(2 + random.standard_normal(100))
    assert drift.verdict.p_value > alone.verdict.p_value


@pytest.mark.parametrize("wrong", [{"window": 19}, {"alpha": 0}, {"alpha": 1}, {"alpha": float("nan")}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(SettingsError):
        running(**wrong)
