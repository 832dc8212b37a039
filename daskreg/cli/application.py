"""The Typer application and its global options."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from daskreg.errors import SITE

USAGE_ERROR: Any = typer.BadParameter.__base__  # Typer has its own copy of Click, or Click, and no public name for this class
ANYWHERE = ("--quiet", "--verbose", "-v", "--log-level")  # global options, which may stand behind the command too


class Commands(TyperGroup):
    """The commands; global options may stand anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by Typer; says where an option belongs that stands before the command."""
        try:
            return list(super().parse_args(ctx, global_first(args)))
        except USAGE_ERROR as error:
            self._explain(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Called by Typer; says where an unknown option belongs, or an output that was given without its option."""
        try:
            return super().invoke(ctx)
        except USAGE_ERROR as error:
            self._explain(error)
            named = error.ctx is not None and any(p.name == "output" for p in error.ctx.command.params)
            if named and "unexpected extra argument" in error.message:
                error.message += ". The output is named by -o OUTPUT."
            raise

    def _explain(self, error: Any) -> None:
        if getattr(error, "option_name", None) and error.ctx is not None:
            from daskreg.cli.misplaced import explain

            explain(error, self)


def global_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with global options, and the value of one, before the command; what stands behind ``--`` stays."""
    first, rest, left = list[str](), list[str](), iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument.partition("=")[0] not in ANYWHERE:
            rest.append(argument)
        else:
            first += [argument, *([next(left, "")] if argument == "--log-level" else [])]
    return first + rest


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="3D image registration from a laptop-sized brain to a 10-gigavoxel archive.",
    epilog=f"The options above may stand behind the command too. Documentation: {SITE}",
)
_quiet = [False]


def quiet() -> bool:
    """Whether nothing but warnings and errors is wanted."""
    return _quiet[0]


def logged_beside() -> bool:
    """Whether a file that takes standard output takes the log too, as that of a job does: nothing is to stand there twice."""
    from daskreg.reporting.log import INFO, TREE

    try:
        places = [os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
    except (AttributeError, OSError, ValueError):  # one of them is closed, or no file
        return False
    return os.path.samestat(*places) and not sys.stderr.isatty() and TREE.isEnabledFor(INFO)


def _version(wanted: bool) -> None:
    if wanted:
        import daskreg

        typer.echo(daskreg.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, no summary of a run: warnings and errors alone")] = False,
    level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="as --log-level debug")] = False,
) -> None:
    from daskreg.reporting.log import configure

    _quiet[0] = quiet
    configure(level or ("warning" if quiet else "debug" if verbose else "info"))
