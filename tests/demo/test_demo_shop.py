"""The synthetic shop and what happens in it."""

import numpy as np
import pyarrow as pa
import pytest

from procserver.demo import shop
from procserver.demo.features import request_columns, training_columns
from procserver.demo.interactions import (
    HISTORY,
    SHOWN,
    Shelves,
    draw_impressions,
    draw_requests,
)

ITEMS, USERS, REQUESTS = 1500, 300, 800


def draw(seed: int):
    rng = np.random.default_rng(seed)
    where = shop.draw_map(rng)
    items = shop.draw_items(rng, where, ITEMS)
    users = shop.draw_users(rng, where, USERS)
    requests = draw_requests(rng, items, users, REQUESTS)
    return items, users, requests, draw_impressions(rng, items, users, requests)


@pytest.fixture(scope="module")
def world():
    return draw(3)


def test_ids_are_those_of_the_vendor_samples():
    assert [shop.item_id(n) for n in (1, 2, 3, 50_000)] == [
        "item_0001",
        "item_0002",
        "item_0003",
        "item_50000",
    ]
    assert shop.user_id(29) == "u001d"


def test_item_table_has_the_types_that_a_shop_has(world):
    table = world[0].table
    assert table["item_id"].to_pylist()[:2] == ["item_0001", "item_0002"]
    assert table.num_rows == len(set(table["item_id"].to_pylist())) == ITEMS
    assert {field.name: field.type for field in table.schema} == {
        "item_id": pa.string(),
        "title": pa.string(),
        "category": pa.string(),
        "brand": pa.int32(),
        "price": pa.float64(),
        "price_level": pa.int32(),
        "tags": pa.list_(pa.string()),
        "rating": pa.float32(),
        "sales": pa.int64(),
        "stats": pa.list_(pa.float32()),
    }
    assert all(column.null_count == 0 for column in table.columns)
    assert set(map(len, table["stats"].to_pylist())) == {3}


def test_price_levels_are_deciles_within_a_category():
    group = np.array([0, 1, 0, 1, 0, 0])
    price = np.array([4.0, 9.0, 1.0, 2.0, 3.0, 2.0])
    assert shop.levels_within(group, price).tolist() == [7, 5, 0, 0, 5, 2]


def test_shelves_draw_from_the_category(world):
    items = world[0]
    wanted = np.random.default_rng(0).choice(items.category, (400, 3))
    drawn = Shelves(items).of_category(np.random.default_rng(1), wanted)
    assert (items.category[drawn] == wanted).all()


def test_shelves_draw_by_popularity(world):
    items = world[0]
    drawn = Shelves(items).popular(np.random.default_rng(1), (200_000,))
    share = np.bincount(drawn, minlength=len(items)) / 200_000
    assert np.corrcoef(share, items.popularity)[0, 1] > 0.97


def test_histories_hold_the_session_interest(world):
    items, users, requests, _ = world
    newest = requests.history[requests.history_length > 0, 0]
    session = requests.session[requests.history_length > 0]
    same = (items.category[newest] == session).mean()
    by_interest = users.interest[requests.user].max(axis=1).mean()
    assert same > by_interest
    assert (np.diff(requests.hours_ago, axis=1) >= 0).all()
    assert (requests.history_length == 0).any()
    assert requests.history_length.max() == HISTORY


def test_orders_follow_clicks(world):
    shown = world[3]
    assert len(shown.item) == REQUESTS * SHOWN
    assert not (shown.order & ~shown.click).any()
    assert 0.05 < shown.click.mean() < 0.3
    assert 0.1 < shown.order[shown.click].mean() < 0.6


def test_the_same_seed_draws_the_same_shop(world):
    items, _, requests, shown = draw(3)
    assert items.table.equals(world[0].table)
    assert requests.words == world[2].words
    np.testing.assert_array_equal(shown.click, world[3].click)
    assert not draw(4)[0].table.equals(items.table)


def test_training_columns_join_what_the_server_would(world):
    items, users, requests, shown = world
    columns = training_columns(items, users, requests, shown)
    per_request = request_columns(items, users, requests)
    rows = items.table.to_pylist()
    for row in (0, 7, 8, len(shown.item) - 1):
        item, request = int(shown.item[row]), int(shown.request[row])
        for name in ("item_id", "category", "price", "stats", "tags"):
            assert columns[name][row].as_py() == rows[item][name]
        length = int(requests.history_length[request])
        clicks = [rows[i] for i in requests.history[request, :length]]
        for name in ("item_id", "category", "brand", "price"):
            cell = columns[f"click_seq__{name}"][row].as_py()
            assert cell == [click[name] for click in clicks]
        assert columns["user_id"][row] == per_request["user_id"][request]
        assert len(columns["click_seq__hours_ago"][row].as_py()) == length
    assert {len(column) for column in columns.values()} == {len(shown.item)}
