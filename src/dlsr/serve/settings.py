"""Limits of the service."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dlsr.calibration.drift import SMALLEST_WINDOW


class ServeSettings(BaseModel):
    """Limits of a service. Requests beyond them are refused with a problem document, see `dlsr.serve.problems`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str | None = Field(default=None, min_length=8, repr=False)
    """Bearer token that `/v1` and `/metrics` require; None requires none."""
    hosts: frozenset[str] = frozenset()
    """Names of the service besides IP addresses and `localhost`; pages of these hosts may use it, too."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    """Size of a request's body."""
    max_images: int = Field(default=64, ge=1)
    """Images in one request."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of one image, read from its header; and of all large images that are decoded at a time."""
    max_requests: int = Field(default=256, ge=1)
    """Requests with the token that are handled concurrently."""
    max_connections: int = Field(default=1024, ge=1)
    """Open connections; fewer if the process may not open as many files."""
    max_waiting: int = Field(default=1024, ge=1)
    """Images being decoded or waiting to be scored."""
    max_batch: int = Field(default=64, ge=1)
    """Images scored in one batch, unless one request has more."""
    max_wait_seconds: float = Field(default=0.005, ge=0)
    """How long an idle service waits for more images before it scores a batch."""
    body_seconds: float = Field(default=30, gt=0)
    """Time in which a request's body must arrive."""
    score_seconds: float = Field(default=60, gt=0)
    """Time in which a request's images must be scored."""
    reload_seconds: float = Field(default=1, gt=0)
    """Interval between checks for a new model in the directory."""
    drift_window: int = Field(default=1000, ge=SMALLEST_WINDOW)
    """Number of latest images in the drift test and in the share of OOD images."""

    @field_validator("hosts")
    @classmethod
    def _lower(cls, hosts: frozenset[str]) -> frozenset[str]:
        return frozenset(host.lower() for host in hosts)
