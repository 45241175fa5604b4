"""What holds for every test."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Forward passes of the tests' own run on one thread.

    So do those of the servers that they are compared with: the last bits of a score
    depend on how many threads share a matrix product. Where no test module has
    imported torch, none computes anything with it.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
