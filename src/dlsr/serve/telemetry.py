"""What a service tells of itself to Prometheus."""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dlsr.calibration.drift import SMALLEST_WINDOW, Martingale, window_test
from dlsr.detector import Result

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""Of the calibration scores: the limits of the score histogram."""
BEYOND = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Further limits above the highest calibration score, in spans of the calibration scores."""
STREAM = 10_000
"""The test martingale starts anew after so many images, for it remembers each of them."""


class Telemetry:
    """Metrics of one service. All methods may be called from any thread."""

    def __init__(self, window: int) -> None:
        self.registry = CollectorRegistry()
        self._window: deque[tuple[float, bool]] = deque(maxlen=window)
        self._lock = threading.Lock()
        self.requests = Counter("dlsr_requests_total", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "dlsr_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.images = Counter(
            "dlsr_images_total", "Images judged: id, ood or unreadable.", ["verdict"], registry=self.registry
        )
        self.rejected = Counter(
            "dlsr_rejected_total", "Requests refused, by reason.", ["reason"], registry=self.registry
        )
        self.reloads = Counter(
            "dlsr_reloads_total", "Model reloads: done or failed.", ["outcome"], registry=self.registry
        )
        self.waiting = Gauge("dlsr_waiting_images", "Images that wait to be scored.", registry=self.registry)
        self.model = Gauge("dlsr_model_info", "The model that scores.", ["id"], registry=self.registry)
        self._share = Gauge("dlsr_ood_share", f"Share judged OOD of the last {window} images.", registry=self.registry)
        self._drift = Gauge(
            "dlsr_drift_p_value",
            f"Kolmogorov-Smirnov test of the last {window} images against the calibration images.",
            registry=self.registry,
        )
        self._capital = Gauge(
            "dlsr_drift_log10_martingale",
            f"Capital of the test martingale, to base 10, over at most {STREAM} images: 2 is an alarm at 1 %.",
            registry=self.registry,
        )
        self._scores: Histogram | None = None

    def watch(self, model: str, calibration: NDArray[np.float64]) -> None:
        """Start anew with a model: its id and calibration scores."""
        with self._lock:
            self.model.clear()
            self.model.labels(model).set(1)
            if self._scores is not None:
                self.registry.unregister(self._scores)
            limits = np.quantile(calibration, QUANTILES)
            limits = np.unique([*limits, *(limits[-1] + np.array(BEYOND) * max(float(np.ptp(limits)), 1e-9))])
            self._scores = Histogram(
                "dlsr_score",
                "Scores, larger = more OOD; limits are quantiles of the calibration scores and beyond.",
                buckets=limits.tolist(),
                registry=self.registry,
            )
            self._calibration = calibration
            self._window.clear()
            self._restart()

    def _restart(self) -> None:
        self._martingale = Martingale(self._calibration)
        self._streamed = 0

    def count(self, results: list[Result]) -> None:
        """Count images that were judged."""
        with self._lock:
            for result in results:
                if result.score is None or result.is_ood is None:
                    self.images.labels("unreadable").inc()
                    continue
                self.images.labels("ood" if result.is_ood else "id").inc()
                if self._scores is not None:
                    self._scores.observe(result.score)
                self._window.append((result.score, result.is_ood))
                if self._streamed == STREAM:
                    self._restart()
                self._martingale.update(result.score)
                self._streamed += 1

    def exposition(self, waiting: int) -> bytes:
        """All metrics in Prometheus' text format."""
        with self._lock:
            self.waiting.set(waiting)
            scores = np.array([score for score, _ in self._window])
            verdicts = [is_ood for _, is_ood in self._window]
            self._share.set(float(np.mean(verdicts)) if verdicts else 0.0)
            enough = len(scores) >= SMALLEST_WINDOW
            self._drift.set(window_test(scores, self._calibration).p_value if enough else float("nan"))
            self._capital.set(self._martingale.log10)
            return generate_latest(self.registry)
