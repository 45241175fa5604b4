"""What operators share: refusals by name, prefixes."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run

from procserver.errors import BadFeature


def test_prefix():
    found = run("id", [pa.array(["a"])], form="ids", bucketizer=HASH, prefix=b"f_")
    assert found["values"] == [h("f_a")]
    array = pa.array([17], pa.int64())
    found = run("id", [array], form="ids", bucketizer=HASH, prefix=b"f_")
    assert found["values"] == [h("f_17")]


def test_maps_and_nested_lists_are_refused_by_name():
    options = {"form": "ids", "bucketizer": HASH}
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0'.*a map"):
        run("id", [pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))], **options)
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0'.*a list of lists"):
        run("id", [pa.array([[["a"]]])], **options)
