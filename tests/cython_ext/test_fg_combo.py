"""combo_feature: crosses, their order and their bounds."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run

from procserver.errors import BadFeature


def test_crosses_first_operand_outermost():
    found = run(
        "combo", [pa.array(["ua|ub"]), pa.array(["ia|ib", "ic", "", None])],
        form="ids", bucketizer=HASH, separator=b"|", default_text=b"d",
        default_id=h("d"),
    )  # fmt: skip
    crossed = ["ua_ia", "ua_ib", "ub_ia", "ub_ib", "ua_ic", "ub_ic", "d", "d"]
    assert found["values"] == [h(text) for text in crossed]
    assert found["lengths"] == [4, 2, 1, 1]


def test_crosses_of_long_texts_and_numbers():
    long = "x" * 500
    found = run(
        "combo",
        [pa.array([long]), pa.array([17, -4], pa.int64()), pa.array([0.5])],
        form="ids", bucketizer=HASH, prefix=b"f_",
    )  # fmt: skip
    assert found["values"] == [h(f"f_{long}_17_0.5"), h(f"f_{long}_-4_0.5")]


def test_crosses_are_bounded():
    wide = pa.array([["a"] * 1000])
    with pytest.raises(BadFeature, match="too many crossed values"):
        run("combo", [wide] * 7, form="ids", bucketizer=HASH)
    found = run("combo", [wide] * 7, form="ids", bucketizer=HASH, value_dim=1)
    assert found["lengths"] == [1]
