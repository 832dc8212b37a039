"""Write the table of classes in docs/glossary.md from the classes' docstrings.

``python .ci/glossary.py`` rewrites the table; ``--check`` exits 1 if it is out of date. Listed is every class of the package that
is not private, except the exceptions, which ``daskreg/errors.py`` documents together, and those in modules of ``daskreg.torch``
that have the names of other packages. Needs nothing but the standard library.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "glossary.md"
HEADING = "## Classes\n"
NAMED_BY_OTHERS = {f"torch/{name}.py" for name in ("monai", "voxelmorph", "voxelmorph_0_2", "transmorph", "icon", "fireants")}


def sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)\]0-9])\.(?=\s|$)", paragraph)[0].rstrip(".:;") + "."


def classes() -> Iterator[tuple[str, str, str]]:
    """Name, module and meaning of every listed class."""
    for path in sorted((ROOT / "daskreg").rglob("*.py")):
        module = str(path.relative_to(ROOT / "daskreg"))
        if module in NAMED_BY_OTHERS:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and module != "errors.py":
                yield node.name, module, sentence(ast.get_docstring(node) or "")


def table() -> str:
    """The table in Markdown, in the order of names."""
    rows = [f"| `{name}` | `{module}` | {meaning.replace('|', chr(92) + '|')} |" for name, module, meaning in sorted(classes())]
    return "\n".join(["", "| class | where | meaning |", "|---|---|---|", *rows, ""])


def main(arguments: list[str]) -> int:
    """Rewrite the page, or check it."""
    text = PAGE.read_text()
    wanted = text[: text.index(HEADING) + len(HEADING)] + table()
    if "--check" not in arguments:
        PAGE.write_text(wanted)
    elif wanted != text:
        print("docs/glossary.md is out of date; run python .ci/glossary.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
