"""Files beside fg.json, wherever the export was written."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator

FEATURE = {
    "feature_type": "id_feature",
    "feature_name": "city",
    "expression": "item:city",
    "default_bucketize_value": 1,
}


def export(folder: Path, vocab_file: str, words: str = "a\nb\nc\n") -> Path:
    folder.mkdir()
    (folder / "city_vocab_4e19.txt").write_text(words)
    feature = FEATURE | {"vocab_file": vocab_file}
    (folder / "fg.json").write_text(json.dumps({"features": [feature]}))
    return folder / "fg.json"


def ids(fg_json: Path) -> list[int]:
    cities = pa.array(["c", "a", "nowhere"])
    tensors = FeatureGenerator(fg_json).transform({"city": cities})
    return tensors["city.values"].tolist()


def test_relative_names_follow_the_folder(tmp_path: Path) -> None:
    export(tmp_path / "a", "city_vocab_4e19.txt")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert ids(tmp_path / "b" / "fg.json") == [2, 0, 1]


@pytest.mark.parametrize("still_there", [False, True])
def test_the_paths_of_the_exporting_machine_do_not_count(
    tmp_path: Path, still_there: bool
) -> None:
    written = tmp_path / "written"
    fg_json = export(tmp_path / "here", str(written / "city_vocab_4e19.txt"))
    digest = FeatureGenerator(fg_json).digest
    if still_there:
        export(written, "x", "z\ny\n")
    assert ids(fg_json) == [2, 0, 1]
    assert FeatureGenerator(fg_json).digest == digest
    (fg_json.parent / "city_vocab_4e19.txt").write_text("c\nb\na\n")
    assert FeatureGenerator(fg_json).digest != digest


def test_an_absolute_name_may_stand_for_itself(tmp_path: Path) -> None:
    shared = tmp_path / "shared.txt"
    shared.write_text("c\na\n")
    assert ids(export(tmp_path / "here", str(shared))) == [0, 1, 1]


def test_a_file_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FgConfigError, match="vocab_file"):
        ids(export(tmp_path / "here", "/export/of/another/machine.txt"))
