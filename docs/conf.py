"""Settings of the documentation site."""

import os
import re
from importlib.metadata import version as installed_version

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "sb3_ddpg_scratch"
author = "The sb3_ddpg_scratch authors"
copyright = "2026, " + author
release = version = installed_version("sb3-ddpg-scratch")

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["**.ipynb_checkpoints", "results_table.md"]
templates_path: list[str] = []

html_theme = "furo"
html_title = "sb3_ddpg_scratch"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
# Notebooks are run when the site is built, so that what they show is what the code does.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
# Figures as HTML with Plotly's script inside, which work offline.
os.environ["PLOTLY_RENDERER"] = "notebook"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def _math(block):
    """A visitor that writes formulas as MathML, which browsers show without a script or a font from elsewhere."""

    def visit(translator, node):
        translator.body.append(tex2mathml(node.astext(), as_block=block))
        raise nodes.SkipNode

    return visit, None


def _prepared(app, pagename, templatename, context, doctree):
    """Without MathJax from elsewhere, which Plotly's figures ask for without a formula; options do not break at a hyphen."""
    body = re.sub(r'<script[^>]*src="https://[^"]*mathjax[^"]*"[^>]*></script>', "", context.get("body", ""))
    context["body"] = re.sub(r'<span class="pre">(-[\w=.-]+)</span>', r'<span class="pre option">\1</span>', body)


def setup(app):
    """Register the renderer of formulas, and make pages that need nothing from elsewhere."""
    app.connect("html-page-context", _prepared)
    app.add_html_math_renderer("mathml", _math(block=False), _math(block=True))
