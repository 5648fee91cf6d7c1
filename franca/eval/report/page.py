"""The report's page: plain HTML and CSS in one file, pictures beside it, nothing from the network."""

from collections.abc import Collection, Mapping, Sequence
from html import escape

STYLE = """\
:root { --ink: #1f2933; --muted: #5d6975; --line: #dde2e7; --paper: #fff; --ground: #f6f7f9; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header p { color: var(--muted); margin-top: 0; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 0 0 .6rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.4rem 1.5rem;
  margin-top: 1.25rem; }
section > :last-child { margin-bottom: 0; }
p { margin: 0 0 .9rem; }
.lead { font-size: 1.15rem; font-weight: 600; line-height: 1.45; }
.verdict { border-left: 5px solid; padding: .6rem .9rem; border-radius: 4px; }
.verdict strong { display: block; }
.verdict strong::first-letter { text-transform: uppercase; }
.good { border-color: #009e73; background: #e9f6f2; }
.open { border-color: #e69f00; background: #fdf6e6; }
.bad { border-color: #d55e00; background: #fcefe6; }
figure { margin: 1.1rem 0; overflow-x: auto; }
img { display: block; width: 100%; height: auto; min-width: 540px; }
figcaption { position: sticky; left: 0; color: var(--muted); font-size: .9rem; line-height: 1.5; margin-top: .5rem; }
.wide { overflow-x: auto; margin: 0 0 .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; width: 100%; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
.best { font-weight: 700; color: var(--blue); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 1.2rem; }
.pair img { min-width: 0; }
main.broad { max-width: 1240px; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem 1.2rem; margin: 0 0 1rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; font-weight: 600; }
li { margin-bottom: .5rem; }
ul { padding-left: 1.2rem; margin: 0; }
summary { cursor: pointer; color: var(--blue); }
pre { overflow-x: auto; background: var(--ground); border-radius: 6px; padding: .9rem; font-size: .82rem;
  line-height: 1.45; }
@media (max-width: 480px) { body { font-size: 16px; } section { padding: 1.1rem 1rem; } }
"""


def page(title: str, subtitle: str, sections: Sequence[str], broad: bool = False) -> str:
    """A whole document; ``sections`` are HTML. ``broad`` leaves room for many columns."""
    kind = ' class="broad"' if broad else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main{kind}>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n</header>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading and the HTML below it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph; ``kind`` is a class of the style sheet."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>"


def picture(file: str, alt: str, caption: str) -> str:
    """A PNG beside the page. It opens in full size when clicked, and scrolls sideways where the screen is narrow."""
    return (
        f'<figure>\n<a href="{escape(file)}"><img src="{escape(file)}" alt="{escape(alt)}" loading="lazy"></a>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def side_by_side(pictures: Sequence[str]) -> str:
    """Pictures beside one another, as many as the screen is wide."""
    return '<div class="pair">\n' + "\n".join(pictures) + "\n</div>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    best: Collection[tuple[int, int]] = (),
) -> str:
    """Cells are plain text; the first of each row is its name. ``best``: cells to point out, by row and column."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cell(cell, (row, column) in best) for column, cell in enumerate(cells, start=1))
        + "</tr>"
        for row, (name, *cells) in enumerate(rows)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str, best: bool) -> str:
    mark = ' class="best"' if best else ""
    return f"<td{mark}>{escape(text)}</td>"


def facts(pairs: Mapping[str, str]) -> str:
    """Short names and values side by side."""
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f"<dl>\n{items}\n</dl>"


def bullets(sentences: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>\n" + "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "\n</ul>"


def folded(summary: str, text: str) -> str:
    """Long plain text that opens on a click."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre>\n</details>"


def verdict(health: str, reason: str) -> str:
    """The monitor's verdict, with a colour and the words."""
    kind = {"healthy": "good", "collapsing": "bad"}.get(health, "open")
    return f'<p class="verdict {kind}"><strong>{escape(health)}</strong> {escape(reason)}</p>'
