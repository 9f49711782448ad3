"""docs/architecture.md follows the code: each step's function exists, and names what leads to the next step."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MOST_STEPS = 10


@dataclass(frozen=True)
class Step:
    """`functions` of a file, called one by the other; the last one's source holds `leads_to`."""

    file: str
    functions: tuple[str, ...]
    leads_to: str | None


def walks() -> dict[str, list[Step]]:
    """The numbered lists of the page, by their headings."""
    found: dict[str, list[Step]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.removeprefix("### ") if line.startswith("### ") else ""
        elif heading and re.match(r"\d+\. ", line):
            before, _, after = line.partition(" → ")
            file, *functions = re.findall(r"`([^`]+)`", before)
            name = re.match(r"`([^`]+)`", after)
            found.setdefault(heading, []).append(Step(file, tuple(functions), name[1] if name else None))
    return found


def source_of(file: str, function: str) -> str:
    """The source of a function or class of a file, by its qualified name."""
    text = (ROOT / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in function.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        inner = [one for one in ast.walk(node) if isinstance(one, kinds) and one.name == part]
        assert inner, f"{file} has no {function}"
        node = inner[0]
    source = ast.get_source_segment(text, node)
    assert source is not None
    return source


def mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def test_the_page_has_four_walks_of_at_most_ten_steps() -> None:
    found = walks()
    assert len(found) == 4
    for heading, steps in found.items():
        assert 3 <= len(steps) <= MOST_STEPS, heading


@pytest.mark.parametrize("heading", walks())
def test_each_step_leads_to_the_next(heading: str) -> None:
    steps = walks()[heading]
    for place, step in enumerate(steps):
        assert step.functions, step
        sources = [source_of(step.file, function) for function in step.functions]
        for source, callee in zip(sources, step.functions[1:], strict=False):
            assert mentions(source, callee.split(".")[-1]), f"{heading}, step {place + 1}: {callee} is not called"
        if place == len(steps) - 1:
            continue
        assert step.leads_to, f"{heading}, step {place + 1} leads nowhere"
        assert mentions(sources[-1], step.leads_to), f"{heading}, step {place + 1}: no {step.leads_to} in its function"
        following = steps[place + 1]
        arrives = step.leads_to in following.functions[0].split(".") or mentions(
            source_of(following.file, following.functions[0]), step.leads_to
        )
        assert arrives, f"{heading}, step {place + 2} does not take up {step.leads_to}"


def test_every_file_and_package_that_the_page_names_exists() -> None:
    for name in re.findall(r"`((?:app|runtime|model|tests|docs|assets)/[\w/.*]*)`", PAGE):
        assert list(ROOT.glob(name.rstrip("/"))), name
