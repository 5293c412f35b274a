"""What the commands share: messages, values of options, bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import typer


def fail(message: str) -> NoReturn:
    """End with one line on the standard error stream."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def needs(extra: str, error: ModuleNotFoundError) -> NoReturn:
    """Say which extra has the missing package."""
    fail(f"this needs {error.name}: pip install 'segops[{extra}]'")


def chosen_device(name: str) -> str:
    """A device by its name, auto for the GPU where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        fail(f"device: expected cpu, cuda or auto, got {name}: {str(error).splitlines()[0]}")
    return name


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE of each text, the values as YAML reads them."""
    import yaml

    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            fail(f"{text}: expected NAME=VALUE")
        out[name] = yaml.safe_load(value)
    return out


def last_line(error: BaseException) -> str:
    """Of an error that may have come from a process that loads data, with its traceback before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    prefix = f"{type(error).__name__}: "
    return line.rpartition(prefix)[2] if prefix in line else line


def bar(title: str) -> Callable[[Sequence[Any]], Iterator[Any]]:
    """Wraps what is gone through, and shows how far it is."""
    from rich.progress import track

    return lambda items: iter(track(items, title, transient=True))
