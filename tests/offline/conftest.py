"""The trainer of ``trainer.py`` with procserver in pyfg's place."""

import importlib.util
import sys
from pathlib import Path

import pytest

from procserver.offline import pyfg


@pytest.fixture
def trainer(monkeypatch):
    """A fresh import of the trainer, whose ``import pyfg`` finds our module."""
    monkeypatch.setitem(sys.modules, "pyfg", pyfg)
    monkeypatch.delenv(pyfg.HASH_MODE, raising=False)
    path = Path(__file__).with_name("trainer.py")
    spec = importlib.util.spec_from_file_location("trainer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
