"""Numbers as a reader likes them."""

import numpy as np


def number(value: float, sign: bool = False) -> str:
    """
    :param value: a number
    :param sign: whether to write a plus, too
    :return: it with three significant digits or as many as its whole part has, a true minus sign, and commas
    """
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 else f"{value:.3g}"
    if "e" in text and size > 1e-4:
        text = f"{value:.5f}"
    text = "0" if float(text.replace(",", "")) == 0 else text
    return ("+" if sign and value > 0 else "") + text.replace("-", "−")


def percent(share: float) -> str:
    """
    :param share: a share of 1
    :return: it in percent
    """
    return "–" if np.isnan(share) else f"{share:.0%}"


def duration(seconds: float) -> str:
    """
    :param seconds: a duration
    :return: it in words
    """
    if np.isnan(seconds):
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.0f}\u00a0s"
    return f"{seconds / 60:.0f}\u00a0min" if seconds < 7200 else f"{seconds / 3600:.1f}\u00a0h"
