"""A page that needs nothing else: Plotly, style, script and figures in one HTML file."""

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sb3_ddpg_scratch.errors import ArgumentError

_HERE = "sb3_ddpg_scratch.page"


def assemble(
    room: str, title: str, heading: str, subheading: str, overview: str, sections: str, footer: str, figures: Sequence[Any]
) -> str:
    """
    :param room: the package whose ``page.css`` and ``page.js`` come after the shared ones
    :param title: the window's title, plain text
    :param heading: the page's heading, plain text
    :param subheading: the line below it, plain text
    :param overview: what the reader sees first, HTML
    :param sections: all the rest, HTML
    :param footer: plain text
    :param figures: what the room's script draws, made of what JSON knows
    :return: the page
    :raises ArgumentError: if Plotly is not installed
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ArgumentError(
            "report", "plotly", "installed", "The report needs Plotly: pip install 'sb3-ddpg-scratch[report]'."
        ) from error
    parts = {
        "title": html.escape(title),
        "heading": html.escape(heading),
        "subheading": html.escape(subheading),
        "style": _asset(_HERE, "shell.css") + _asset(room, "page.css"),
        "overview": overview,
        "sections": sections,
        "footer": html.escape(footer),
        "plotly": get_plotlyjs(),
        "figures": _as_script_data(figures),
        "script": _asset(_HERE, "theme.js") + _asset(room, "page.js"),
    }
    # Split once at the markers, so that nothing inside a part can be taken for one.
    pieces = _asset(_HERE, "shell.html").split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def bullets(items: Sequence[str]) -> str:
    """
    :param items: plain texts
    :return: a list of them, HTML
    """
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"


def alarm(title: str, items: Sequence[str]) -> str:
    """
    :param title: what is wrong, plain text
    :param items: the single cases, plain texts
    :return: a box that cannot be overlooked, HTML; nothing if there are no cases
    """
    if not items:
        return ""
    return f'<div class="alarm" role="note"><strong>{html.escape(title)}</strong>{bullets(items)}</div>'


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _as_script_data(value: Any) -> str:
    # "<" is all that could end a script element.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
