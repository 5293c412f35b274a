"""Progress: a bar, a callable, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Report = Callable[[int, int], None]


def reporting(progress: bool | Report) -> AbstractContextManager[Report]:
    """A context whose value is called with (windows done, windows in all)."""
    if callable(progress):
        return nullcontext(progress)
    return _bar() if progress else nullcontext(lambda done, count: None)


@contextmanager
def _bar() -> Iterator[Report]:
    try:
        from rich.progress import Progress
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("progress=True needs rich: install it, or pass a callable") from error
    with Progress(transient=True) as bars:
        task = bars.add_task("windows", total=None)
        yield lambda done, count: bars.update(task, completed=done, total=count)
