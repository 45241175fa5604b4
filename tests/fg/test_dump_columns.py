"""Input columns as text: what features are made of."""

import pyarrow as pa

from cython_ext.column import Column
from procserver.fg import FeatureGenerator
from procserver.fg.dump import dump_columns


def column(values: list[object], type_: pa.DataType) -> Column:
    return Column.from_arrow(pa.array(values, type_))


def test_every_shape_of_cell() -> None:
    columns = {
        "text": column(["a", None], pa.string()),
        "int": column([-3, 0], pa.int64()),
        "single": column([0.1, 1e-7], pa.float32()),
        "double": column([0.1, 1 / 3], pa.float64()),
        "list": column([["x", "y"], []], pa.list_(pa.string())),
        "singles": column([[0.1, 0.5], None], pa.list_(pa.float32())),
        "lists": column([[[1, 2], [3]], [[]]], pa.list_(pa.list_(pa.int32()))),
        "map": column(
            [[("a", 0.5), ("b", 2.0)], []], pa.map_(pa.string(), pa.float32())
        ),
    }
    assert dump_columns(columns, 2) == [
        "text:a | int:-3 | single:0.1 | double:0.1 | list:x,y | singles:0.1,0.5"
        " | lists:1,2;3 | map:a:0.5,b:2.0",
        "text: | int:0 | single:1e-07 | double:0.3333333333333333 | list: | singles:"
        " | lists: | map:",
    ]


def test_one_row_stands_for_all_and_absent_columns_are_empty() -> None:
    columns = {"one": column([7], pa.int32()), "none": Column.null(3)}
    assert dump_columns(columns, 3) == ["one:7 | none:"] * 3
    assert dump_columns({}, 2) == ["", ""]
    assert dump_columns(columns, 0) == []


def test_features_of_the_user_are_left_out_of_items() -> None:
    generator = FeatureGenerator(
        {
            "features": [
                {
                    "feature_type": "raw_feature",
                    "feature_name": name,
                    "expression": f"{side}:{name}",
                    "default_value": "0",
                }
                for side, name in (("user", "u"), ("item", "i"), ("context", "c"))
            ]
        }
    )
    tensors = generator.transform(
        {name: pa.array([1.0, 2.0], pa.float32()) for name in "uic"}
    )
    assert generator.dump_items(tensors) == ["i:1.0 | c:1.0", "i:2.0 | c:2.0"]
    assert generator.dump(tensors)[0] == "u:1.0 | i:1.0 | c:1.0"
