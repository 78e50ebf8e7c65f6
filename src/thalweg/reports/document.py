"""One HTML file with everything inside it: what every page of the house is filled into.

Two walls stand between foreign text (corpus, model, recipe, samples, names of arms) and the reader. Every text is
escaped by the template. And the page's own policy allows only the scripts it was written with, by their hashes: even
text that found a way out of its place could not run, and nothing in the page can reach the network.

Size: plotly's bundle is 4.8 MB and the only one its Python package carries; a page adds at most about one more.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def fill(name: str, data: Any, **contents: Any) -> str:
    """The page `name`: its template with the shared style, plotly, the shared script and its own, and the charts' data.

    Args:
        name: of templates/<name>.html, .css and .js.
        data: plain data for the page's script.
        contents: what the template shows; escaped by it.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    plotly, shared, script = get_plotlyjs(), own_file("page.js"), own_file(f"{name}.js")
    return _template(name).render(
        **contents,
        # Markup: our own files, and JSON that `embedded_json` has made harmless.
        policy=Markup(policy(plotly, shared, script)),
        style=Markup(own_file("page.css") + own_file(f"{name}.css")),
        plotly=Markup(plotly),
        shared_script=Markup(shared),
        script=Markup(script),
        chart_data=Markup(embedded_json(data)),
    )


def still(name: str, picture: str, **contents: Any) -> str:
    """The page `name` with one picture and no script.

    Args:
        name: of templates/<name>.html.
        picture: SVG of our own making, with no foreign text in it (`pictures.svg`).
        contents: what the template shows besides; escaped by it.
    """
    from markupsafe import Markup

    return _template(name).render(**contents, style=Markup(own_file("page.css")), picture=Markup(picture))


def _template(name: str) -> Any:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(f"{name}.html")


def own_file(name: str) -> str:
    """A template file of this package."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def policy(*scripts: str) -> str:
    """A Content-Security-Policy that runs exactly these inline scripts and forbids every connection.

    Styles stay open, since plotly sets them inline; `blob:` and `data:` images are how it saves a chart as a file.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: Any) -> str:
    """JSON that no text in it can end the `<script>` of, or mean something in, to a parser.

    `<`, `>`, `&` and the two JavaScript line ends are escaped. NaN and infinities are an error here, null is the word.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
