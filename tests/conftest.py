"""What holds for every test."""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# Whether a change passes must not hang on chance or on how busy the machine is; new
# examples are looked for with HYPOTHESIS_PROFILE=search.
ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **ALWAYS)
settings.register_profile("search", **ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Services of the tests keep their state apart from those of whoever runs them."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


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
