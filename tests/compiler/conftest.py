"""One build of the shapes for all tests that only look at what came out."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from compiler.build import Built, build
from compiler.recipe import read_recipe
from tests.fakes.models import Task, scales, shapes, write_recipe

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def shapes_task() -> Task:
    return shapes()


@pytest.fixture(scope="session")
def scales_task() -> Task:
    return scales()


@pytest.fixture(scope="session")
def recipe_path(shapes_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), shapes_task)


@pytest.fixture(scope="session")
def built(recipe_path: Path) -> Built:
    return build(read_recipe(recipe_path), now=NOW)
