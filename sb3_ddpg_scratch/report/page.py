"""HTML pages that work offline: style, script and figures in one file, from Jinja templates with autoescape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.report.figure import Figure, color_style
from sb3_ddpg_scratch.report.formatting import number, percent

_TEMPLATES = Environment(
    loader=PackageLoader("sb3_ddpg_scratch", package_path=""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
_TEMPLATES.filters |= {"number": number, "percent": percent, "color_style": color_style}


def write_page(path: Path, package: str, figures: Sequence[Figure], one_file: bool, **parts: Any) -> None:
    """
    Write a page from a package's ``report.html``, style and script, which extend the shared ones; ``parts`` are its
    variables. Plotly is inside, or in a file beside it, which all pages of a folder share.
    """
    require("A report", "report", "plotly")
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    name = f"plotly-{get_plotlyjs_version()}.min.js"
    if not (one_file or path.with_name(name).exists()):
        write_whole(path.with_name(name), get_plotlyjs())
    page = _TEMPLATES.get_template(f"{package}/report.html").render(
        style=_asset("report/base.css") + _asset(f"{package}/page.css"),
        script=_asset("report/theme.js") + _asset(f"{package}/page.js"),
        plotly=Markup(get_plotlyjs()) if one_file else None,
        plotly_file=name,
        figures=figures,
        script_data=[figure.script_data() for figure in figures],
        **parts,
    )
    write_whole(path, page)


def _asset(name: str) -> Markup:
    assert _TEMPLATES.loader is not None
    return Markup(_TEMPLATES.loader.get_source(_TEMPLATES, name)[0])
