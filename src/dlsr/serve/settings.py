"""What a service may be asked, and how much of it."""

from pydantic import BaseModel, ConfigDict, Field

from dlsr.calibration.drift import SMALLEST_WINDOW


class ServeSettings(BaseModel):
    """Limits of a service. What goes beyond is refused with a problem document, see `dlsr.serve.problems`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str | None = Field(default=None, min_length=8, repr=False)
    """Bearer token that `/v1` and `/metrics` ask for; None asks for none."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    max_images: int = Field(default=64, ge=1)
    """In one request."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Of one image, by its header."""
    max_requests: int = Field(default=256, ge=1)
    """Handled at once."""
    max_waiting: int = Field(default=1024, ge=1)
    """Images that wait to be scored."""
    max_batch: int = Field(default=64, ge=1)
    """Images scored together, unless one request has more."""
    max_wait_seconds: float = Field(default=0.005, ge=0)
    """So long an idle service waits for more images to score together."""
    body_seconds: float = Field(default=30, gt=0)
    """In which a request's body must have arrived."""
    score_seconds: float = Field(default=60, gt=0)
    """In which its images must have been scored."""
    reload_seconds: float = Field(default=1, gt=0)
    """How often the model directory is looked at for a new model."""
    drift_window: int = Field(default=1000, ge=SMALLEST_WINDOW)
    """Images over which drift and the share judged OOD are told."""
