"""What features need of an item table: columns, kinds, numbers of values."""

import pyarrow as pa
import pytest

from cython_ext.column import Column, Kind
from procserver.fg import FeatureGenerator
from procserver.fg.suitability import TableSuitability

FG = {
    "features": [
        {
            "feature_type": "raw_feature",
            "feature_name": "vector",
            "expression": "item:vector",
            "value_dim": 3,
            "separator": ",",
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "price",
            "expression": "item:price",
        },
        {
            "feature_type": "id_feature",
            "feature_name": "tags",
            "expression": "item:tags",
            "hash_bucket_size": 10,
        },
        {
            "feature_type": "lookup_feature",
            "feature_name": "rate",
            "map": "user:rates",
            "key": "item:city",
            "hash_bucket_size": 10,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "ctr",
            "expression": "user:ctr",
        },
        {
            "sequence_name": "clicks",
            "sequence_length": 2,
            "sequence_delim": ";",
            "sequence_pk": "user:clicks",
            "features": [
                {
                    "feature_type": "raw_feature",
                    "feature_name": "vector",
                    "expression": "item:clicked_vector",
                    "value_dim": 2,
                },
                {
                    "feature_type": "id_feature",
                    "feature_name": "brand",
                    "expression": "item:brand",
                    "hash_bucket_size": 10,
                },
            ],
        },
    ]
}


@pytest.fixture(scope="module")
def table() -> TableSuitability:
    return TableSuitability(FeatureGenerator(FG))


def test_which_features_read_what(table: TableSuitability) -> None:
    assert table.reads == {
        "vector": ["vector"],
        "price": ["price"],
        "tags": ["tags"],
        "city": ["rate"],
        "clicked_vector": ["clicks__vector"],
        "brand": ["clicks__brand"],
    }


def test_kinds_that_kernels_refuse(table: TableSuitability) -> None:
    fit = {
        "vector": Kind.LIST_FLOAT32,
        "price": Kind.STRING,
        "tags": Kind.LIST_STRING,
        "city": Kind.INT64,
        "clicked_vector": Kind.LIST_FLOAT64,
        "brand": Kind.STRING,
        "unread": Kind.MAP_INT64_INT64,
    }
    assert table.unfit(fit) == []
    assert table.unfit({}) == []
    unfit = {
        **fit,
        "tags": Kind.MAP_STRING_STRING,
        "vector": Kind.LISTS_FLOAT32,
        # Joined to a sequence, lists of lists do not nest further.
        "brand": Kind.LISTS_STRING,
    }
    assert table.unfit(unfit) == [
        "column 'vector' holds lists of lists (lists_float32), which feature"
        " 'vector' cannot take",
        "column 'tags' holds maps (map_string_string), which feature 'tags' cannot"
        " take",
        "column 'brand' holds lists of lists (lists_string), which feature"
        " 'clicks__brand' cannot take",
    ]


def column(cells: list[object], type_: pa.DataType | None = None) -> Column:
    return Column.from_arrow(pa.array(cells, type_))


def test_cells_of_a_wrong_width(table: TableSuitability) -> None:
    cells = [[1.0, 2, 3], None, [1.0], [], [1.0, 2, 3, 4]]
    clicked = [[1.0, 2], [1.0], [1.0, 2], None, [1.0, 2, 3]]
    found = table.refused(
        {
            "vector": column(cells),
            "price": column([1.0, None, 2, 3, 4]),
            "clicked_vector": column(clicked),
            "tags": column([["a"], ["b", "c"], None, [], ["d"]]),
        },
        5,
    )
    assert {name: bad.tolist() for name, bad in found.items()} == {
        "vector": [False, False, True, False, True],
        # Beyond the length of a sequence too.
        "clicked_vector": [False, True, False, False, True],
    }
    texts = column(["1,2,3", "1,2", None, "", "a,b,c"])
    found = table.refused({"vector": texts}, 5)
    assert found["vector"].tolist() == [False, True, False, False, False]
    # One number where three are wanted.
    found = table.refused({"vector": column([1.0, None])}, 2)
    assert found["vector"].tolist() == [True, False]
    assert table.refused({"vector": Column.null(3)}, 3) == {}
    assert table.refused({"vector": column([], pa.list_(pa.float32()))}, 0) == {}
