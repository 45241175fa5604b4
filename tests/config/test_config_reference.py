"""The page of all keys comes from the declarations."""

import dataclasses
from pathlib import Path

import pytest

from procserver.config import reference
from procserver.config.known import SECTIONS, all_settings
from procserver.config.platform import PLATFORM_KEYS
from procserver.config.settings import settings_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_what_the_declarations_say(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    assert reference.main(["--write", str(copy)]) == 0
    assert copy.read_text() == PAGE.read_text(), (
        "run: python -m procserver.config.reference --write docs/configuration.md"
    )


def test_a_stale_page_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{reference.BEGIN}\nstale text\n{reference.END}\nb\n")
    assert reference.main(["--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")
    assert "stale text" not in text
    page.write_text("no marks")
    assert reference.main(["--write", str(page)]) == 2


def test_every_key_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([]) == 0
    text = capsys.readouterr().out
    for _, _, declared in all_settings():
        assert f"| `{declared.path}` |" in text
    for path in PLATFORM_KEYS:
        assert f"`{path}`" in text


def test_every_declaration_is_complete() -> None:
    paths = [declared.path for _, _, declared in all_settings()]
    assert len(paths) == len(set(paths))
    assert not set(paths) & set(PLATFORM_KEYS)
    for section, name, declared in all_settings():
        where = f"{section.__name__}.{name}"
        assert declared.help.endswith("."), where
        assert "|" not in declared.help, where
        for unit in ("ms", "s"):
            if name.endswith(f"_{unit}"):
                assert declared.unit == unit, where


def test_every_field_of_a_section_is_a_setting_or_resolved() -> None:
    resolved = {"ServiceConfig", "EnvConfig"}
    for section in SECTIONS:
        if section.__name__ in resolved:
            continue
        fields = {field.name for field in dataclasses.fields(section)}
        # A section of its own.
        fields -= {"stream"} if section.__name__ == "SourceConfig" else set()
        assert fields == {name for name, _ in settings_of(section)}
