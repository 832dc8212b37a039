"""Docstrings of the code as Sphinx reads them: paragraphs of ``name: meaning`` are lists of fields."""

import re
from itertools import groupby

FIELD = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (.+)$", re.S)
NEXT = re.compile(r";  (?=[a-z_]\w*: )")  # several fields of a line


def as_fields(app, what, name, obj, options, lines):
    """Called by Sphinx."""
    found = []
    for blank, paragraph in groupby(lines, key=lambda line: not line):
        part = list(paragraph)
        found += part if blank or not FIELD.match(part[0]) else _list_of_fields(part)
    lines[:] = found


def _list_of_fields(lines):
    """Each field with the lines that it goes on over; what a function raises is a paragraph behind them."""
    entries, rest = [], []
    for line in lines:
        if line.startswith("Raises ") or rest:
            rest.append(line)
        elif FIELD.match(line):
            entries.append(line)
        else:
            entries[-1] += " " + line.strip()
    fields = [FIELD.match(part) for entry in entries for part in NEXT.split(entry)]
    return [*(f":param {f[1]}: {f[2].rstrip(';')}" for f in fields), *(["", *rest] if rest else [])]


def without_values(app, what, name, obj, options, signature, returns):
    """The signature of a configuration names its fields; the docstring has their defaults."""
    if what == "class" and hasattr(obj, "model_fields"):
        names = [n for n in obj.model_fields if n not in ("stage", "kind")]
        return f"({', '.join(['*', *names]) if names else ''})", None
    return signature, returns
