"""Metrics of the service, for Prometheus."""

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dlsr.calibration.drift import SMALLEST_WINDOW, Martingale, window_test
from dlsr.results import Result

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
"""Bucket limits of request times."""
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""Bucket limits of the score histogram, as quantiles of the calibration scores."""
BEYOND = (0.25, 0.5, 1.0, 2.0, 5.0)
"""More bucket limits above the highest calibration score, in units of the range of the calibration scores."""
STREAM = 10_000
"""The test martingale restarts after this many images, because it keeps all their scores in memory."""


class Telemetry:
    """Metrics of one service. All methods may be called from any thread.

    Args:
        window: number of latest images in the share of OOD images and in the drift test.
    """

    def __init__(self, window: int) -> None:
        self.registry = CollectorRegistry()
        self._window: deque[tuple[float, bool]] = deque(maxlen=window)
        self._lock = threading.Lock()
        self.requests = Counter("dlsr_requests_total", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "dlsr_request_seconds", "Time to answer a request.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.images = Counter(
            "dlsr_images_total", "Images by verdict: id, ood or unreadable.", ["verdict"], registry=self.registry
        )
        self.rejected = Counter(
            "dlsr_rejected_total", "Requests refused, by reason.", ["reason"], registry=self.registry
        )
        self.reloads = Counter(
            "dlsr_reloads_total", "Model reloads by outcome: done or failed.", ["outcome"], registry=self.registry
        )
        self.waiting = Gauge(
            "dlsr_waiting_images", "Images being decoded or waiting to be scored.", registry=self.registry
        )
        self.model = Gauge("dlsr_model_info", "The current model.", ["id"], registry=self.registry)
        self._share = Gauge(
            "dlsr_ood_share",
            f"Share of OOD images among the last {window} images of the current model.",
            registry=self.registry,
        )
        self._drift = Gauge(
            "dlsr_drift_p_value",
            f"Kolmogorov-Smirnov test of the last {window} scores of the current model against its calibration scores.",
            registry=self.registry,
        )
        self._capital = Gauge(
            "dlsr_drift_log10_martingale",
            f"Base-10 logarithm of the test martingale, restarted every {STREAM} images: 2 is an alarm at 1 %.",
            registry=self.registry,
        )
        self._scores: Histogram | None = None
        self._model: str | None = None

    def watch(self, model: str, calibration: NDArray[np.float64]) -> None:
        """Restart all statistics of scores, for a new model.

        Args:
            model: its id.
            calibration: its calibration scores, shape `(n,)`.
        """
        limits = np.quantile(calibration, QUANTILES)
        limits = np.unique([*limits, *(limits[-1] + np.array(BEYOND) * max(float(np.ptp(limits)), 1e-9))])
        with self._lock:
            self._model = model
            self.model.clear()
            self.model.labels(model).set(1)
            if self._scores is not None:
                self.registry.unregister(self._scores)
            self._scores = Histogram(
                "dlsr_score",
                "Scores of the current model, larger = more OOD; limits are quantiles of its calibration scores.",
                buckets=limits.tolist(),
                registry=self.registry,
            )
            self._calibration = calibration
            self._window.clear()
            self._restart()

    def _restart(self) -> None:
        self._martingale = Martingale(self._calibration)
        self._streamed = 0

    def count(self, model: str, results: Iterable[Result]) -> None:
        """Count scored images.

        Args:
            model: id of the model that scored them. Scores of a model that was replaced in the meantime are left out of
                all statistics of scores: they cannot be compared with the calibration scores of the new model.
            results: one for each image.
        """
        with self._lock:
            for result in results:
                if result.score is None or result.is_ood is None:
                    self.images.labels("unreadable").inc()
                    continue
                self.images.labels("ood" if result.is_ood else "id").inc()
                if model == self._model:
                    self._add_score(result.score, result.is_ood)

    def _add_score(self, score: float, is_ood: bool) -> None:
        assert self._scores is not None
        self._scores.observe(score)
        self._window.append((score, is_ood))
        if self._streamed == STREAM:
            self._restart()
        self._martingale.update(score)
        self._streamed += 1

    def exposition(self, waiting: int) -> bytes:
        """All metrics in Prometheus' text format. Takes long for a large window.

        Args:
            waiting: number of images waiting to be scored.
        """
        with self._lock:
            scores, calibration = np.array([score for score, _ in self._window]), self._calibration
            verdicts = [is_ood for _, is_ood in self._window]
        # Takes up to seconds, in which results are to be counted.
        enough = len(scores) >= SMALLEST_WINDOW
        drift = window_test(scores, calibration).p_value if enough else float("nan")
        with self._lock:
            self.waiting.set(waiting)
            self._share.set(float(np.mean(verdicts)) if verdicts else 0.0)
            self._drift.set(drift)
            self._capital.set(self._martingale.log10)
            return generate_latest(self.registry)
