"""``python benchmarks/page.py``: write docs/benchmarks.md, and the measured tables in README.md and docs/ops/.

All figures come from the files in benchmarks/results/. In a page, everything between ``<!-- measured: OP, OP -->`` and
``<!-- end -->`` is made here, and ``<!-- measured: summary -->`` stands for a line of each operator. A test says
whether the committed pages are what this makes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from page_tables import file_section, losses, operators, summary
from report import RESULTS, load

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- measured: ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = ROOT / "docs/benchmarks.md"


def results() -> dict[str, dict[str, Any]]:
    """By file name, newest first."""
    found = [(path.name, load(path)) for path in RESULTS.glob("*.json")]
    return dict(sorted(found, key=lambda x: (x[1]["date"], x[0]), reverse=True))


INTRODUCTION = """# Benchmarks

Made by `python benchmarks/page.py` from the files in `benchmarks/results/`; do not edit it.

`make bench` measures all of this on one's own machine (a quarter of an hour on two cores), `make bench ARGS=--quick`
one small workload of each operator (three minutes; without `torch.compile`), and
`make bench ARGS="--op dense_crf --threads 1"` one operator on one thread. `bash benchmarks/gpu.sh FOLDER` does
everything on a machine with an NVIDIA GPU. `--json FILE` keeps the figures, `--plot FOLDER` draws them.

- **Right before fast**: each provider's result, gradients included, is held against float64 first. Who is wrong is
  shown as wrong and has no figure, and no ratio refers to them.
- **times** is the time of the fastest correct peer of the same run over that of segops: above 1 segops is faster. A
  peer with one thread is compared with segops on one and on all.
- **of the floor** is the least time that the machine allows, over the median: bytes that have to move over the
  bandwidth of a plain copy, operations of matrix products over the rate of a plain product, whichever is longer. What
  fits into a cache can pass 100 %.
- **MiB** is what a call takes at its peak above its inputs; *results'* is the part of it that nobody can save.

Peers in plain PyTorch are written in `benchmarks/rows_*.py`, most of them as published; the others come from PyPI
(`pip install ".[peers]"`)."""


def page(found: dict[str, dict]) -> str:
    parts = [INTRODUCTION, "## All operators", "In the geometric mean over the workloads, and in brackets the least."]
    parts += [summary(found, "../"), "## Where segops loses", losses(found)]
    parts += [file_section(name, result) for name, result in found.items()]
    return "\n\n".join(parts) + "\n"


def filled(text: str, found: dict[str, dict], depth: str) -> str:
    """A page with its measured blocks made anew."""

    def block(match: re.Match) -> str:
        names = [name.strip() for name in match[2].split(",")]
        body = summary(found, depth) if names == ["summary"] else operators(names, found, depth)
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def pages() -> dict[Path, str]:
    """Every generated page, or page with generated blocks, as it has to be."""
    found = results()
    made = {PAGE: page(found)}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs/ops").glob("*.md"))):
        made[path] = filled(path.read_text(), found, "" if path.name == "README.md" else "../")
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
