"""The pages' colors in light mode, for what is drawn without a browser; ``theme.js`` has those of both modes."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_COLORS: dict[str, str] = {
    name: color
    for style in ("report/base.css", "compare/page.css")
    for name, color in re.findall(r"--([a-z]+\d*): (#[0-9a-f]{6})", (_PACKAGE / style).read_text().partition("@media")[0])
}
# As in theme.js: paler than a run's own color.
_OPACITIES = {"faint": 0.4, "wash": 0.17}


def light_color(name: str) -> tuple[str, float]:
    """The color (``#rrggbb``) and the opacity of a name like ``theme:run0``."""
    name = name.removeprefix("theme:")
    kind = name.rstrip("0123456789")
    opacity = _OPACITIES.get(kind)
    return (_COLORS[name], 1.0) if opacity is None else (_COLORS[name.replace(kind, "run")], opacity)
