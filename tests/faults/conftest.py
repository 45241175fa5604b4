"""Services that faults are done to; after every test nothing of them is left.

``service(...)`` starts one for a test, ``shared(...)`` one for a module. Tests are
called ``test_fNN_...`` after the row of ``matrix.csv`` that they prove; rows that
are not everyday's carry the marker ``faults`` and run with ``make faults``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

import fault_models
import matrix
from faulty import Service, make_service

HERE = Path(__file__).parent
Make = Callable[..., Service]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what ``make test`` leaves out."""
    rows = matrix.rows()
    for item in items:
        if HERE not in item.path.parents:
            continue
        row = matrix.row_of(item.name)
        if row is not None and rows[row]["everyday"] != "yes":
            item.add_marker("faults")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export of each fault model."""
    return fault_models.write_all(tmp_path_factory.mktemp("models") / "all")


def _maker(folder: Path, models: Path, made: list[Service]) -> Make:
    def make(model: str = "good", **options: Any) -> Service:
        """A service that is not started yet; see :func:`faulty.make_service`."""
        made.append(make_service(folder, models, model, **options))
        return made[-1]

    return make


def _end_all(made: list[Service]) -> None:
    problems = []
    for one in made:
        try:
            one.end()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


@pytest.fixture
def service(tmp_path: Path, models: Path) -> Iterator[Make]:
    """Makes services that end with the test, and checks that nothing is left."""
    made: list[Service] = []
    yield _maker(tmp_path, models, made)
    _end_all(made)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Make]:
    """The same for a service that all tests of a module use."""
    made: list[Service] = []
    yield _maker(tmp_path_factory.mktemp("shared"), models, made)
    _end_all(made)


@pytest.fixture(autouse=True)
def nothing_is_let_out(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, services that go on are looked at too."""
    yield
    for value in request.node.funcargs.values():
        if isinstance(value, Service) and value.process is not None:
            value.check_quiet()
