"""Values as small tables of HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"


def table(title: str, rows: Iterable[tuple[str, object]], more: str = "") -> str:
    """A title and facts, one a line, escaped. more: HTML behind them."""
    lines = "".join(f'<tr><th style="{CELL}">{escape(k)}</th><td style="{CELL}">{escape(str(v))}</td></tr>' for k, v in rows)
    return f"<div><b>{escape(title)}</b><table><tbody>{lines}</tbody></table>{more}</div>"


def preformatted(title: str, text: str) -> str:
    """A title and text of fixed width."""
    return f'<div><b>{escape(title)}</b><pre style="font-size:smaller">{escape(text)}</pre></div>'


def pictures(rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Rows of pictures with their titles. Pictures: addresses, such as ``data:`` URIs."""
    shown = (
        f"<div>{escape(title)}<br>" + "".join(f'<img src="{escape(p)}" style="height:160px;margin:2px">' for p in row) + "</div>"
        for title, row in rows
    )
    return "".join(shown)


def joined(values: Iterable[float], between: str = " x ") -> str:
    """Numbers in short."""
    return between.join(f"{v:.6g}" for v in values)
