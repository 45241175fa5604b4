"""``processor_envs``: forms, precedence, meanings."""

from typing import Any

import pytest

from procserver import config
from procserver.config.envs import Environment
from procserver.errors import ConfigError


def parse(minimal: dict[str, Any], environ: dict[str, str], envs: Any) -> config.Loaded:
    return config.parse(minimal | {"processor_envs": envs}, "/srv", environ)


@pytest.mark.parametrize(
    "envs",
    [
        [{"name": "INPUT_TILE", "value": "2"}, {"name": "N", "value": 1.5}],
        [{"name": "INPUT_TILE", "value": 2}, {"name": "N", "value": "1.5"}],
        {"INPUT_TILE": "2", "N": 1.5},
    ],
)
def test_forms(envs: Any, minimal: dict[str, Any], environ: dict[str, str]) -> None:
    loaded = parse(minimal, environ, envs)
    assert loaded.service.envs.input_tile == 2
    assert dict(loaded.service.envs.raw) == {"INPUT_TILE": "2", "N": "1.5"}
    assert loaded.warnings == []


def test_service_json_wins_over_the_process(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    environ |= {
        "INPUT_TILE": "3",
        "NO_GRAD_GUARD": "1",
        "USE_FARM_HASH_TO_BUCKETIZE": "true",
        "PYTORCH_TENSOREXPR_FALLBACK": "2",
    }
    envs = parse(minimal, environ, []).service.envs
    assert (envs.input_tile, envs.no_grad_guard) == (3, True)
    assert (envs.farm_hash, envs.tensorexpr_fallback) == (True, "2")
    assert dict(envs.raw) == {}
    given = {"INPUT_TILE": "2", "NO_GRAD_GUARD": 0, "USE_FARM_HASH_TO_BUCKETIZE": False}
    envs = parse(minimal, environ, given).service.envs
    assert (envs.input_tile, envs.no_grad_guard, envs.farm_hash) == (2, False, False)
    # An empty value switches a variable of the process off.
    assert parse(minimal, environ, {"INPUT_TILE": ""}).service.envs.input_tile is None


@pytest.mark.parametrize(
    ("value", "tile", "warned"),
    [
        ("2", 2, False),
        ("3_online", 3, False),
        ("0", None, False),
        ("1", None, False),
        ("yes", None, True),
    ],
)
def test_input_tile_is_its_first_character(
    value: str,
    tile: int | None,
    warned: bool,
    minimal: dict[str, Any],
    environ: dict[str, str],
) -> None:
    loaded = parse(minimal, environ, {"INPUT_TILE": value})
    assert loaded.service.envs.input_tile == tile
    assert bool(loaded.warnings) is warned


@pytest.mark.parametrize("value", ["True", "1", "yes", 1])
def test_farm_hash_is_not_guessed(
    value: Any, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="USE_FARM_HASH_TO_BUCKETIZE: expected"):
        parse(minimal, environ, {"USE_FARM_HASH_TO_BUCKETIZE": value})


@pytest.mark.parametrize(
    ("envs", "text"),
    [
        ("X=1", "processor_envs: expected a list"),
        (["X=1"], r"processor_envs\[0\]: expected"),
        ([{"key": "X", "value": 1}], r"processor_envs\[0\]: expected"),
        ([{"value": 1}], r"processor_envs\[0\].name: expected"),
        ([{"name": "A=B", "value": 1}], r"processor_envs\[0\].name: expected"),
        ([{"name": "A", "value": []}], r"processor_envs\[0\].value: expected"),
        (
            [{"name": "A", "value": 1}, {"name": "A", "value": 2}],
            '"A" is given twice with different values',
        ),
    ],
)
def test_problems(
    envs: Any, text: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(minimal, environ, envs)


def test_misspelt_names_are_hinted_at(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    warnings = parse(minimal, environ, {"INPUT_TILES": "2", "OTHER": "x"}).warnings
    assert warnings == ['processor_envs: "INPUT_TILES", did you mean "INPUT_TILE"?']


def test_names_that_sound_secret_are_masked() -> None:
    shown = repr(Environment({"OSS_ACCESS_KEY_ID": "canary", "LEVEL": "3"}))
    assert "canary" not in shown
    assert "'LEVEL': '3'" in shown
