"""The page: HTML around the tables and figures, with library, style and data inside."""

import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figures import Control, Figure
from plotly.offline import get_plotlyjs

HERE = Path(__file__).parent


def table(header: list[str] | tuple[str, ...], rows: list[list[str]], numbers_from: int,
          wrapped: bool = False) -> str:
    """Columns from `numbers_from` on are aligned as numbers. It scrolls by itself when narrow."""
    def cells(tag: str, row: list[str] | tuple[str, ...]) -> str:
        made = []
        for index, text in enumerate(row):
            kind = ' class="number"' if index >= numbers_from else ""
            made.append(f"<{tag}{kind}>{html.escape(text)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"
    body = "\n".join(cells("td", row) for row in rows)
    kind = ' class="wrapped"' if wrapped else ""
    return (f'<div class="scroll"><table{kind}><thead>{cells("th", header)}</thead>\n'
            f"<tbody>\n{body}\n</tbody></table></div>\n")


def controls(items: list[Control]) -> str:
    made = []
    for item in items:
        options = "".join(f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
                          for value, text in item.options)
        made.append(f'<label>{html.escape(item.label)} '
                    f'<select data-control="{html.escape(item.name)}">{options}</select></label>')
    return f'<div class="controls">{"".join(made)}</div>\n' if made else ""


def figure_grid(figures: list[Figure]) -> str:
    made = []
    for figure in figures:
        made.append(
            f'<figure class="figure {figure.shape}" id="{figure.key}">'
            f"<figcaption><h3>{html.escape(figure.title)}</h3>"
            f"<p>{html.escape(figure.caption)}</p></figcaption>\n"
            f'{controls(figure.controls)}<div class="plot"></div></figure>\n')
    return f'<div class="grid">\n{"".join(made)}</div>\n'


def section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>\n"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def document(title: str, body: str, figures: list[Figure]) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>Made {now}.</p></header>
<main>
{body}</main>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="figures">{_data([f.as_json() for f in figures])}</script>
<script>
{script}</script>
</body>
</html>
"""


def _data(value: Any) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
