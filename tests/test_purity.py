"""Pure modules get their time, chance and bytes as arguments.

The list of pure modules, and of what they may not import, is the one that import-linter reads from
pyproject.toml. These tests add what an import alone does not show: opening a file, asking the system
for the time or for dice, and importing one of our own modules that is not pure itself.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("skerry", "agent", "fleet", "compiler", "devices")
IMPURE_CALLS = (
    "open", "input", "print", "exec", "eval", "__import__",
    "io.open", "io.FileIO",
    "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
    "uuid.uuid1", "uuid.uuid4", "np.fromfile", "np.load", "np.save", "np.memmap",
)  # fmt: skip


def contract() -> dict[str, list[str]]:
    """The import-linter contract that lists pure modules."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(entry for entry in settings["contracts"] if entry["id"] == "pure")


def files_of(module: str) -> list[Path]:
    """The source files of a module, or of a package with everything below it."""
    path = ROOT.joinpath(*module.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_exempt(name: str) -> bool:
    exempt = (line.split(" -> ")[0] for line in contract()["ignore_imports"])
    return any(
        name.startswith(pattern.removesuffix("**")) if pattern.endswith(".**") else name == pattern
        for pattern in exempt
    )


PURE = {
    name_of(path): path
    for module in contract()["source_modules"]
    for path in files_of(module)
    if not is_exempt(name_of(path))
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports, with the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[str]:
    """Every call to a plain or dotted name, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func)


def is_impure_call(call: str) -> bool:
    named = any(
        call == impure or call.endswith(f".{impure}") for impure in IMPURE_CALLS if "." in impure
    )
    return named or call in IMPURE_CALLS or call.startswith(("np.random.", "numpy.random."))


@pytest.fixture(params=sorted(name for name, path in PURE.items() if path.is_file()))
def tree(request: pytest.FixtureRequest) -> ast.Module:
    return ast.parse(PURE[request.param].read_text(), filename=request.param)


def test_every_module_called_pure_exists() -> None:
    assert [name for name, path in PURE.items() if not path.is_file()] == []
    assert "skerry.wire" in PURE
    assert "skerry.io.client" not in PURE


def test_it_imports_nothing_that_reaches_the_outside(tree: ast.Module) -> None:
    forbidden = set(contract()["forbidden_modules"])
    assert [name for name in imports(tree) if name.split(".")[0] in forbidden] == []


def test_it_imports_only_pure_modules_of_ours(tree: ast.Module) -> None:
    modules = {path for path in imports(tree) if path.split(".")[0] in OURS}
    files = {name for name in modules if any(path.is_file() for path in files_of(name))}
    assert sorted(files - set(PURE)) == []


def test_it_calls_nothing_that_reaches_the_outside(tree: ast.Module) -> None:
    assert [call for call in calls(tree) if is_impure_call(call)] == []


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("open('x')", "open"),
        ("datetime.datetime.now(UTC)", "datetime.datetime.now"),
        ("np.random.default_rng()", "np.random.default_rng"),
    ],
)
def test_an_impure_call_is_noticed(code: str, call: str) -> None:
    found = list(calls(ast.parse(code)))
    assert found == [call]
    assert is_impure_call(call)


@pytest.mark.parametrize("call", ["stream.open_next", "rng.normal", "decode", "self.now"])
def test_a_pure_call_is_not(call: str) -> None:
    assert not is_impure_call(call)
