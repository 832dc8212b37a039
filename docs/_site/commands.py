"""The reference of commands, from what the command line knows about itself."""

import re

import typer
from typer.cli import get_docs_for_click

HEADER = """# Commands

What `daskreg --help` and `daskreg COMMAND --help` print. Most commands are functions of the same name too: see [Python](api.md).

"""
ADDRESS = "an [address](../archives.md)"  # in place of the formats, which stand behind every image


def write(path):
    """Write the page."""
    from daskreg.cli import app
    from daskreg.cli.options import ADDRESS as FORMATS

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="daskreg"), name="daskreg")
    text = re.sub(r"\*\*Commands\*\*:\n\n.*?\n\n(?=## )", "", text.partition("\n\n")[2], flags=re.S)  # the next headings
    text = re.sub(r"^## `(.*)`$", r"## \1", text, flags=re.M).replace("* `--help`: Show this message and exit.\n", "")
    path.write_text(HEADER + text.replace(FORMATS, ADDRESS), encoding="utf-8")
