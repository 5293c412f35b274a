"""The command line: one module for each command. Nothing heavy is imported before a command runs."""

import typer

from .bench import bench
from .demo import demo
from .evaluate import evaluate
from .info import info
from .models import models
from .ops import ops
from .predict import predict
from .train import train

app = typer.Typer(
    help="Semantic segmentation: a demo, what this machine can run and how fast, training and prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench)
app.command()(demo)
app.command()(evaluate)
app.command()(info)
app.command()(models)
app.command()(ops)
app.command()(predict)
app.command()(train)
