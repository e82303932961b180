"""Values for JSON, and JSON files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ddpg_scratch.atomic import write_whole


def plain(value: Any, words: bool = True) -> Any:
    """Convert arrays, NumPy scalars and tuples to lists and numbers; numbers that are not finite become words or ``None``."""
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number):
            return number
        return ("NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity") if words else None
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), words)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): plain(item, words) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, words) for item in value]
    return value


def write_json(path: Path, content: Any, words: bool = False) -> None:
    """Write a JSON file atomically."""
    write_whole(path, json.dumps(plain(content, words), indent=2, allow_nan=False) + "\n")
