"""raw_feature: numbers, defaults, nulls and precision."""

import numpy as np
import pyarrow as pa
import pytest
from one_operator import run

from procserver.errors import BadFeature


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_the_numeric_null_quirk(kind):
    options = {
        "form": "ids", "bucketizer": ("boundaries", 0, 0, [0.0, 1.0]), "value_dim": 1,
        "default_numbers": [0.0], "normalizer": ("zscore", 10.0, 1.0),
    }  # fmt: skip
    found = run("raw", [pa.array([None, 20], kind)], **options)
    assert found == {"values": [1, 2], "lengths": [1, 1]}
    found = run("raw", [pa.array([[None], None, []], pa.list_(kind))], **options)
    assert found == {"values": [], "lengths": [0, 0, 0]}
    found = run("raw", [pa.array([None, ""], pa.string())], **options)
    assert found == {"values": [], "lengths": [0, 0]}
    found = run("raw", [pa.nulls(1)], **options)
    assert found == {"values": [], "lengths": [0]}


def test_the_wrong_number_of_values_names_row_and_input():
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0' has 3 .* row 1, not 2"):
        run(
            "raw", [pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]])], form="numbers",
            value_dim=2, default_numbers=[0.0, 0.0],
        )  # fmt: skip


def test_a_vector_that_is_no_number_takes_the_default():
    found = run(
        "raw", [pa.array([["1", "x"], ["1", None], ["3", "4"]])], form="numbers",
        value_dim=2, default_text=b"", default_numbers=[7.0, 8.0],
    )  # fmt: skip
    assert found["values"] == [[7, 8], [7, 8], [3, 4]]


def test_the_column_type_chooses_the_arithmetic():
    """Text 0.1 and float 0.1 normalise differently (section 6)."""
    options = {
        "form": "numbers", "value_dim": 1, "default_numbers": [0.0],
        "normalizer": ("zscore", 0.1, 0.3),
    }  # fmt: skip
    text = run("raw", [pa.array(["0.1"])], **options)["values"][0][0]
    single = run("raw", [pa.array([0.1], pa.float32())], **options)["values"][0][0]
    listed = run("raw", [pa.array([["0.1"]])], **options)["values"][0][0]
    assert text == -4.967053435223079e-09
    assert (single, listed) == (0.0, 0.0)


def test_no_flush_to_zero():
    tiny = float(np.float32(1e-45))
    values = [-0.0, tiny, -tiny, 3.4028234663852886e38]
    found = run(
        "raw", [pa.array(values, pa.float32())], form="numbers", value_dim=1,
        default_numbers=[0.0],
    )  # fmt: skip
    assert np.signbit(found["values"][0][0])
    assert [row[0] for row in found["values"]] == values
