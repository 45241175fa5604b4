"""overlap_feature: every method on hand-made terms, and its limits."""

import pyarrow as pa
import pytest
from one_operator import run

from procserver.errors import BadFeature


def overlap(method, query, title, **options):
    options = {
        "form": "numbers", "value_dim": 1, "default_numbers": [0.0],
        "separator": b",", "details": method,
    } | options  # fmt: skip
    arrays = [
        pa.array(text if isinstance(text, list) else [text]) for text in (query, title)
    ]
    return [row[0] for row in run("overlap", arrays, **options)["values"]]


@pytest.mark.parametrize(
    ("method", "query", "title", "expected"),
    [
        ("query_common_ratio", "b,c", "a,b,c,d", 1.0),
        ("query_common_ratio", "b,b,x", "a,b", pytest.approx(2 / 3)),
        ("title_common_ratio", "b,c", "a,b,c,d", 0.5),
        ("title_common_ratio", "b", "b,b,a,x", 0.5),
        ("is_equal", "b,c", "a,b,c,d", 0.0),
        ("is_equal", "b,c", "b,c", 1.0),
        ("is_equal", "b,c", "c,b", 0.0),
        ("is_contain", "b,c", "a,b,c,d", 1.0),
        ("is_contain", "c,b", "a,b,c,d", 0.0),
        ("is_contain", "b,d", "a,b,c,d", 0.0),
        ("index_of", "b,c", "a,b,c,d", 1.0),
        ("index_of", "a,a,b", "a,a,a,b", 1.0),
        ("index_of", "a,b,a,c", "a,b,a,b,a,c", 2.0),
        ("index_of", "x", "a", -1.0),
        ("proximity_min_cover", "b,c", "a,b,c,d", 2.0),
        ("proximity_min_cover", "a,c", "a,x,c,x,x,c,a", 2.0),
        ("proximity_min_cover", "a,z", "a,b", 0.0),
        ("proximity_min_dist", "a,b,c", "a,x,b,x,x,c", 2.0),
        ("proximity_max_dist", "a,b,c", "a,x,b,x,x,c", 5.0),
        ("proximity_avg_dist", "a,b,c", "a,x,b,x,x,c", pytest.approx(10 / 3)),
        ("proximity_max_dist", "a,b,z", "a,b", 3.0),
        ("proximity_min_dist", "a,b,z", "b,a", 1.0),
        ("proximity_avg_dist", "a,a", "a,b", 3.0),
    ],
)
def test_methods(method, query, title, expected):
    assert overlap(method, query, title) == [expected]


def test_terms_are_text_whatever_the_column():
    numbers = [[1, 2]]
    assert overlap("query_common_ratio", numbers, "2,3") == [0.5]
    assert overlap("is_contain", "2", [[1, 2, 3]]) == [1]
    assert overlap("index_of", [[0.5]], [["x", "0.5"]]) == [1]


def test_queries_and_titles_of_every_row_are_their_own():
    queries, titles = ["a", "b,c", "a", None, ","], ["b,a", "c,b,c", "", "a", "a"]
    assert overlap("index_of", queries, titles) == [1, 1, 0, 0, 0]


def test_one_side_empty_is_the_default():
    options = {"default_text": b"3", "default_numbers": [3.0]}
    for method in ("index_of", "is_equal", "proximity_min_dist"):
        assert overlap(method, ["", "a", None], ["a", "", None], **options) == [3] * 3


def test_measures_are_normalised_as_float32():
    options = {"normalizer": ("zscore", 0.5, 0.25)}
    assert overlap("query_common_ratio", "a", "a,b", **options) == [2]


def test_long_inputs():
    query = ",".join(str(i % 1000) for i in range(100_000))
    assert overlap("is_contain", query, "x," + query) == [1]
    assert overlap("index_of", "a," * 50_000 + "b", "a," * 100_000) == [-1]
    assert overlap("proximity_min_cover", "1,2", query) == [2]


def test_too_many_pairs_are_refused_by_name():
    terms = ",".join(map(str, range(5000)))
    with pytest.raises(BadFeature, match=r"'f'.*too many terms"):
        overlap("proximity_avg_dist", terms, terms)


def test_details_are_checked():
    with pytest.raises(KeyError):
        overlap("common_word", "a", "b")
    with pytest.raises(ValueError, match="two sources"):
        overlap("is_equal", "a", "b", default_numbers=[])
