"""No figure without a measurement: what the pages say of speed is made from the files in benchmarks/results/."""

import re

import page
import pytest

# A time, or how many times as fast: 12 ms, 3.4 s, (1.7 x), 42 times as fast, 30 % faster.
FIGURE = re.compile(
    r"\d ?(ms|us|µs)\b|\d s\b|\d ?(x|×)(?=[),.]| *\||$)"
    r"|\b(\d[\d.,]*|two|three|four|five|ten) (times|%) (as (fast|long|slow|quick)|faster|slower|quicker|less time|longer)"
)
PAGES = [page.ROOT / "README.md", page.ROOT / "docs/index.md", *sorted((page.ROOT / "docs/ops").glob("*.md"))]


def claims(text):
    """Figures of speed that stand outside what page.py makes."""
    prose = page.BLOCK.sub("", text)
    return [line for line in prose.splitlines() if FIGURE.search(line)]


def test_the_pages_are_what_the_results_say():
    for path, text in page.pages().items():
        assert path.read_text() == text, f"{path.relative_to(page.ROOT)} differs: run python benchmarks/page.py"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_prose_has_no_figures_of_its_own(path):
    assert not claims(path.read_text())


def test_every_measured_operator_is_on_a_page():
    shown = {
        name.strip()
        for path in PAGES
        for block in page.BLOCK.finditer(path.read_text())
        for name in block[2].split(",")
    }
    measured = {row["op"] for result in page.results().values() for row in result["rows"]}
    assert measured <= shown, f"docs/ops lacks <!-- measured: {', '.join(measured - shown)} --> and <!-- end -->"


@pytest.mark.parametrize(
    "claim",
    [
        "takes 12 ms",
        "| 3.4 s |",
        "(1.7 x)",
        "| 42x |",
        "is 4 times as fast",
        "30 % faster",
        "three times slower",
        "4.7 s, 8 MiB",
    ],
)
def test_a_claim_is_found(claim):
    assert claims(f"Some prose.\nIt {claim}, they say.")


@pytest.mark.parametrize(
    "text",
    [
        "4 x 21 x 512 x 512",
        "1x64 of 97x97",
        "three times the memory",
        "twice 3 pixels",
        "2.5 times that many operations",
        "in seconds",
    ],
)
def test_what_is_no_claim_is_left_alone(text):
    assert not claims(text)


def test_what_stands_between_the_markers_is_not_prose():
    block = "<!-- measured: aspp -->\n| 12 ms | (1.7 x) |\n<!-- end -->"
    assert not claims(f"Before.\n{block}\nAfter.")
    assert claims(f"Before.\n{block}\nAfter 12 ms.")
