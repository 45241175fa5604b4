"""std::hash and Fingerprint64 against recorded vectors and the oracle."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.column import Column
from cython_ext.fg_hash import fold_hashes, hash_text

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "reference"))

import fg_oracle  # noqa: E402

VECTORS = json.loads((TESTS / "data" / "fg" / "fg_hash_vectors.json").read_text())


def test_there_are_189_vectors():
    assert len(VECTORS["vectors"]) == 189


@pytest.mark.parametrize("mode", ["std", "farm"])
def test_vectors(mode):
    for vector in VECTORS["vectors"]:
        data = bytes.fromhex(vector["hex"])
        assert hash_text(data, farm=mode == "farm") == int(vector[mode])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_oracle(data):
    assert hash_text(data, farm=False) == fg_oracle.std_hash(data)
    assert hash_text(data, farm=True) == fg_oracle.farm_hash(data)


@pytest.mark.parametrize("length", range(0, 200))
def test_every_length_at_every_alignment(length):
    data = bytes((i * 37 + length) % 256 for i in range(length))
    assert hash_text(data, farm=True) == fg_oracle.farm_hash(data)
    assert hash_text(data, farm=False) == fg_oracle.std_hash(data)


def test_fold_of_a_column():
    texts = ["", "a", "b" * 70]
    column = Column.from_arrow(pa.array(texts))
    for farm in (False, True):
        folded = 0
        for text in texts:
            folded ^= hash_text(text.encode(), farm=farm)
        assert fold_hashes(column, farm=farm) == folded
    with pytest.raises(TypeError):
        fold_hashes(Column.null(3), farm=True)
