"""Services that faults are done to; after every test nothing of them is left.

``service(...)`` starts one for a test, ``shared(...)`` one for a module. Tests are
called ``test_fNN_...`` after the row of ``matrix.csv`` that they prove; rows that
are not everyday's carry the marker ``faults`` and run with ``make faults``.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

import fault_models
import matrix
from faulty import MARKER, Service, write_service

HERE = Path(__file__).parent
Make = Callable[..., Service]
_serial = itertools.count(1)


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
    def make(
        model: str = "good",
        *,
        name: str = "faulty",
        workers: int = 2,
        env: dict[str, str] | None = None,
        faults: str | None = None,
        **overrides: Any,
    ) -> Service:
        """A service that is not started yet.

        :param model: of ``fault_models``, version 1
        :param faults: arms fault points (an empty text: ``arm`` will)
        :param overrides: of the service JSON, by top key
        """
        number = next(_serial)
        # Nobody else's shared memory has this name, not even of another run.
        name = f"{name}-{os.getpid()}-{number}"
        place = folder / name
        config = write_service(place, name, models, model, overrides)
        given = {MARKER: name, **(env or {})}
        if faults is not None:
            (place / "faults").write_text(faults)
            given["PROCSERVER_FAULTS"] = f"@{place / 'faults'}"
        log = place / "server.log"
        one = Service(config, log, workers=workers, env=given, models=models)
        made.append(one)
        return one

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
