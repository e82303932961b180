"""Numbers formatted for readers."""

from collections.abc import Iterable

import numpy as np


def number(value: float | None, sign: bool = False) -> str:
    """Three significant digits, or the whole part, with commas and a true minus sign; ``sign`` adds a plus."""
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 else f"{value:.3g}"
    if "e" in text and size > 1e-4:
        text = f"{value:.5f}"
    text = "0" if float(text.replace(",", "")) == 0 else text
    return ("+" if sign and value > 0 else "") + text.replace("-", "−")


def percent(share: float | None) -> str:
    return "–" if share is None or np.isnan(share) else f"{share:.0%}"


def duration(seconds: float) -> str:
    if np.isnan(seconds):
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f}\u00a0s"
    return f"{seconds / 60:.0f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"


def span(counts: Iterable[int]) -> str:
    """The common count, or the smallest and the largest."""
    low_to_high = sorted(counts)
    return " to ".join(dict.fromkeys(map(str, (low_to_high[0], low_to_high[-1])))) if low_to_high else "no"
