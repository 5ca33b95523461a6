"""What `skerry` offers to outsiders is named in `__all__`, and nothing else is."""

import ast
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import skerry

MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(skerry.__path__, "skerry.")
    if not is_package and not any(part.startswith("_") for part in name.split("."))
)


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_there_are_public_modules() -> None:
    assert "skerry.wire" in MODULES


def test_every_public_module_says_what_it_offers(module: ModuleType) -> None:
    assert getattr(module, "__all__", None), f"{module.__name__} has no __all__"


def test_every_offered_name_exists_once(module: ModuleType) -> None:
    names = list(module.__all__)
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(names) == len(set(names))


def test_every_public_definition_is_offered(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in tree.body if isinstance(node, kinds)}
    public = {name for name in defined if not name.startswith("_")}
    assert sorted(public - set(module.__all__)) == []


def test_every_offered_function_and_class_has_a_docstring(module: ModuleType) -> None:
    offered = [getattr(module, name) for name in module.__all__]
    code = [thing for thing in offered if inspect.isfunction(thing) or inspect.isclass(thing)]
    assert [thing.__name__ for thing in code if not inspect.getdoc(thing)] == []
