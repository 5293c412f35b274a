"""The command line: one module for each command. Nothing heavy is imported before a command runs."""

import typer

from .bench import bench
from .demo import demo
from .info import info
from .ops import ops

app = typer.Typer(
    help="Operators for semantic segmentation: a demo, what this machine can run, and how fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench)
app.command()(demo)
app.command()(info)
app.command()(ops)
