"""The page of all metrics comes from the declarations."""

from pathlib import Path

from procserver.observe import reference
from procserver.observe.metrics import REGISTRY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


def test_the_page_is_what_the_declarations_say(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    assert reference.main(["--write", str(copy)]) == 0
    assert copy.read_text() == PAGE.read_text(), (
        "run: python -m procserver.observe.reference --write docs/observability.md"
    )


def test_every_metric_is_in_the_table(capsys) -> None:
    assert reference.main([]) == 0
    text = capsys.readouterr().out
    for one in REGISTRY:
        assert text.count(f"| `{one.name}` |") == 1
        assert "|" not in one.help


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    assert reference.main(["--write", str(page)]) == 2
    assert page.read_text() == "no marks"
