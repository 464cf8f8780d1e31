"""Imports go one way in the package, no test imports a test, and helpers are listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import hello_listen

TESTS = Path(__file__).parent


def imported(file: Path) -> Iterator[str]:
    """Yield the imports of a file, also under TYPE_CHECKING and in functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_no_circle() -> None:
    """No module imports itself by way of others."""
    package = Path(hello_listen.__file__).parent
    modules = {
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): file
        for file in package.rglob("*.py")
    }
    assert "hello_listen.protocol" in modules
    imports = {
        name: modules.keys() & set(imported(file)) - {name} for name, file in modules.items()
    }
    assert "hello_listen.connection" in imports["hello_listen.protocol"]
    TopologicalSorter(imports).prepare()  # Raises CycleError.


def test_no_test_of_a_test() -> None:
    """No test imports another test."""
    files = list(TESTS.rglob("*.py"))
    names = {file.stem for file in files if file.stem.startswith("test_")}
    assert Path(__file__).stem in names
    assert not [(file, name) for file in files for name in imported(file) if name in names]


def test_helpers_are_listed() -> None:
    """The README of the tests lists each module that is not a test."""
    listed = (TESTS / "README.md").read_text()
    helpers = {file.name for file in TESTS.glob("*.py") if not file.stem.startswith("test_")}
    assert {"conftest.py", "turns.py"} <= helpers
    assert [name for name in helpers if f"`{name}`" not in listed] == []
