"""Values as they are shown: small tables of HTML for notebooks, lines for ``print``, one short line at a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from html import escape

SHORT = 100  # characters of a line that a prompt shows
CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"


class Printable(ABC):
    """A value that says itself in lines: ``print`` shows all of them, as a notebook does, and a prompt the first, shortened."""

    @abstractmethod
    def lines(self) -> list[str]:
        """For people."""

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        first = " ".join(next(iter(self.lines()), "").split())
        return f"{type(self).__name__}({first if len(first) <= SHORT else f'{first[:SHORT]}...'})"

    def _repr_html_(self) -> str:
        return preformatted(type(self).__name__, str(self))


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
