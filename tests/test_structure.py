"""The structure of the code: the direction of imports, no circles, no flat files, one class name one meaning."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "model", "runtime")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """Every module of dslite by its dotted name; a package stands for its __init__."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(("dslite", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = file
    return found


def imported_names(file: Path) -> set[str]:
    """Dotted names that a module imports anywhere in it: in functions and under TYPE_CHECKING as well."""
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(name: str) -> set[str]:
    """Modules of dslite that a module imports. `from package import module` counts as the module alone."""
    known = modules()
    found = {imported for imported in imported_names(known[name]) if imported in known} - {name}
    packages = {imported for imported in found if known[imported].name == "__init__.py"}
    inner = {package for package in packages if any(other.startswith(f"{package}.") for other in found)}
    return found - inner


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports.get(waiting.pop(), set()) - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in imports}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in reach if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def test_imports_have_no_circle() -> None:
    assert circles({name: imported_modules(name) for name in modules()}) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_imports_point_one_way() -> None:
    """app → runtime → model; model opens no door outwards."""
    allowed = {
        "model": {"model"},
        "runtime": {"model", "runtime", "assets"},
        "app": {"model", "runtime", "app", "assets"},
    }
    for name, file in modules().items():
        rooms = {imported.split(".")[1] for imported in imported_names(file) if imported.startswith("dslite.")}
        assert rooms <= allowed[name.split(".")[1]], f"{file} imports {rooms}"


@pytest.mark.parametrize(
    ("packages", "forbidden"),
    [
        (PACKAGES, {"transformers"}),
        (("model", "runtime"), {"textual", "rich", "typer"}),
        (("model",), {"safetensors", "huggingface_hub", "tokenizers"}),
    ],
)
def test_packages_do_not_import(packages: tuple[str, ...], forbidden: set[str]) -> None:
    for name, file in modules().items():
        if name.split(".")[1] in packages:
            assert not {imported.split(".")[0] for imported in imported_names(file)} & forbidden, file


def test_app_has_no_modules_outside_its_packages() -> None:
    flat = {file.name for file in (ROOT / "app").glob("*.py")}
    assert flat == {"__init__.py", "__main__.py", "cli.py", "errors.py"}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for file in modules().values():
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


# Names of version 0.1.0 that needed their docstring to be understood.
OLD_CLASSES = """
    Conductor Deeds Listener FullContext RoomDialog Piece Entry Column ColumnView Artist Draft Shelf Suffix Happening
    _Work Responder Facts OneToken FewTokens Choice Answering Opener Recorder Maker Completer Told Counted Anew
    Looks Asking Shape Fields Guard Served Colourless Pace Panel Teller Dialogue Batch
""".split()
OLD_FUNCTIONS = "_see_off _relieve soften unfold do_help do_new do_load do_set do_model".split()
OLD_FILES = """
    deeds conductor pieces entries asking opening shelf draft completing places answers saving setup options shapes
    guard running sizes listener column drawing dialogue recorder responder latents branches kv_cache few_tokens
    one_token
""".split()


def test_names_are_the_fields_terms() -> None:
    for file in modules().values():
        assert file.stem not in OLD_FILES, file
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ClassDef):
                assert node.name not in OLD_CLASSES, f"{file}: {node.name}"
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.name not in OLD_FUNCTIONS, f"{file}: {node.name}"


def test_kernels_use_the_fields_terms() -> None:
    old = re.compile(r"\b(soften|unfold|least|most|keep|some)\s*\(|\bstruct Prefill\b")
    for file in (ROOT / "model/kernels/cpu").iterdir():
        found = old.search(file.read_text(encoding="utf-8"))
        assert found is None, f"{file}: {found}"


def test_tests_patch_objects_and_never_dotted_names() -> None:
    """A dotted string goes on passing, and patches nothing, when the name that it means is moved."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree_of(file)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("setattr", "delattr")
            ):
                first = node.args[0] if node.args else None
                dotted = isinstance(first, ast.Constant) and isinstance(first.value, str)
                assert not dotted, f"{file}:{node.lineno} patches by a dotted string"
