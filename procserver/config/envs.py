"""``processor_envs``: environment variables of the closed processors."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from procserver.config.kinds import Boolean, Text, Wrong
from procserver.config.secret import MASK
from procserver.config.settings import read_section, setting, settings_of

_SECRET_WORDS = ("SECRET", "TOKEN", "PASSW", "KEY", "CREDENTIAL", "AUTH", "PWD")


class Environment(Mapping[str, str]):
    """The entries as given; values of names that sound secret are not shown."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def masked(self) -> dict[str, str]:
        """Name and value for people to read."""
        return {
            name: MASK if any(word in name.upper() for word in _SECRET_WORDS) else value
            for name, value in self._entries.items()
        }

    def __repr__(self) -> str:
        return f"Environment({self.masked()!r})"


@dataclass(frozen=True)
class _Tile:
    name: str = "text"
    secret: bool = False

    def read(self, value: object) -> int | None:
        # NOTE: exporter and processor look at the first character only, so
        # "3_online" is 3; what begins otherwise means no tiling.
        text = str(value).strip()
        return int(text[0]) if text[:1] in ("2", "3") else None


@dataclass(frozen=True)
class _ExactTrue:
    """Compared as text by the closed FG; what it might read otherwise is refused.

    A wrong guess here changes every feature id without any error.
    """

    name: str = "true or false"
    secret: bool = False

    def read(self, value: object) -> bool:
        if value in ("true", "false"):
            return value == "true"
        raise Wrong('the text "true" or "false", in lower case')


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Variables with a meaning here, from the JSON or else the process.

    ``raw`` holds every entry of ``processor_envs``, for the workers'
    environment.
    """

    SECTION: ClassVar[str] = "processor_envs"

    input_tile: int | None = setting(
        "INPUT_TILE",
        _Tile(),
        "`2`: user features come once and are generated once. `3`: embedded once "
        "too. Counts only if the model has no `model_acc.json`, which records it.",
        shown_default="off",
    )
    no_grad_guard: bool = setting(
        "NO_GRAD_GUARD",
        Boolean(),
        "`1`: run under `torch.no_grad` alone. No gradients are ever kept here; by "
        "default models run in inference mode, which a few do not take.",
        default=False,
    )
    tensorexpr_fallback: str | None = setting(
        "PYTORCH_TENSOREXPR_FALLBACK",
        Text(),
        "`2`: leave out TorchScript's fusion compiler. Read by torch itself.",
    )
    farm_hash: bool = setting(
        "USE_FARM_HASH_TO_BUCKETIZE",
        _ExactTrue(),
        "`true`: hash buckets by FarmHash Fingerprint64 instead of the default "
        "hash. It must be what the model was trained with.",
        default=False,
    )
    raw: Environment


def read_envs(
    given: Any,
    environ: Mapping[str, str],
    problems: list[str],
    warnings: list[str],
) -> EnvConfig:
    """The service JSON's entries win over the process environment."""
    entries = _entries(given, problems)
    names = {declared.key for _, declared in settings_of(EnvConfig)}
    for name in entries:
        close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.8)
        if close and name not in names:
            warnings.append(f'processor_envs: "{name}", did you mean "{close[0]}"?')
    known = {name: environ[name] for name in names if environ.get(name)}
    known |= {name: value for name, value in entries.items() if name in names}
    known = {name: value for name, value in known.items() if value.strip()}
    values = read_section(EnvConfig, {EnvConfig.SECTION: known}, problems)
    tile = known.get("INPUT_TILE", "").strip()
    if values["input_tile"] is None and tile not in ("", "0", "1", "false"):
        warnings.append(
            f'processor_envs.INPUT_TILE: "{tile}" does not begin with 2 or 3, so '
            "there is no tiling"
        )
    return EnvConfig(**values, raw=Environment(entries))


def _entries(given: Any, problems: list[str]) -> dict[str, str]:
    path = EnvConfig.SECTION
    if given is None:
        return {}
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(given, Mapping):
        pairs = [(f"{path}.{name}", name, value) for name, value in given.items()]
    elif isinstance(given, list):
        for index, entry in enumerate(given):
            where = f"{path}[{index}]"
            if not isinstance(entry, Mapping) or not set(entry) <= {"name", "value"}:
                problems.append(f'{where}: expected {{"name": ..., "value": ...}}')
                continue
            pairs.append((where, entry.get("name"), entry.get("value")))
    else:
        problems.append(f"{path}: expected a list of name and value")
    entries: dict[str, str] = {}
    for where, name, value in pairs:
        if not isinstance(name, str) or not name.strip() or "=" in name:
            problems.append(f"{where}.name: expected the name of a variable")
        elif isinstance(value, dict | list):
            problems.append(f"{where}.value: expected a text or a number")
        else:
            text = _text(value)
            if entries.setdefault(name.strip(), text) != text:
                problems.append(
                    f'{path}: "{name.strip()}" is given twice with different values'
                )
    return entries


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
