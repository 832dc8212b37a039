"""The command that compiles kernels ahead: precompile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daskreg.cli.application import app


@app.command()
def precompile(
    arch: Annotated[
        str, typer.Option("--arch", metavar="SM,..", help="architectures of GPUs: sm_80 for A100, sm_90 for H100 and H200")
    ] = "sm_80,sm_90",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="for DASKREG_KERNEL_CACHE, readable by all (default: your own cache)"),
    ] = None,
    torch: Annotated[bool, typer.Option("--torch", help="those of daskreg.torch too")] = False,
) -> None:
    """Compile the kernels of usual registrations for GPUs that need not be there, such as into an image of a container."""
    from daskreg.workflows.precompile import precompile as compile_kernels

    typer.echo(str(compile_kernels([a.strip() for a in arch.split(",") if a.strip()], folder, torch=torch)))
