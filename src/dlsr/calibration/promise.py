"""The false-alarm rate in words, without slow imports."""


def promise(rate: float, confidence: float | None = None) -> str:
    """A false-alarm rate in words."""
    sure = "" if confidence is None else f" with confidence {confidence:g}"
    return f"a false-alarm rate of {100 * rate:g} %{sure}"
