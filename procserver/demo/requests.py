"""Sample requests as protobuf messages, ready to be posted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from procserver.demo.features import SEQUENCE, city_name
from procserver.demo.interactions import SOURCES, Requests
from procserver.demo.shop import GENDERS, Items, Users, item_id, user_id
from procserver.wire.pb import torchrec_predict_pb2 as torchrec

FILES = {
    "rank_1.pb": 1,
    "rank_10.pb": 10,
    "rank_100.pb": 100,
    "rank_300.pb": 300,
}
UNKNOWN_ITEMS = "rank_unknown_items.pb"
EMPTY_SEQUENCE = "rank_empty_sequence.pb"


def sample_requests(
    items: Items, users: Users, requests: Requests, seed: int
) -> dict[str, bytes]:
    """File name -> bytes of a PBRequest, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    # The newest requests with some history; they are outside the training part.
    rows = np.flatnonzero(requests.history_length >= 5)[::-1]
    files = {}
    for row, (name, count) in zip(rows, FILES.items(), strict=False):
        wanted = candidates(rng, items, requests, int(row), min(count, len(items)))
        message = user_message(items, users, requests, int(row))
        add_items(message, wanted, rng)
        files[name] = message
    known = candidates(rng, items, requests, int(rows[0]), 3)
    message = user_message(items, users, requests, int(rows[0]))
    add_items(message, [known[0], "item_none", known[1], "", known[2]], rng)
    files[UNKNOWN_ITEMS] = message
    newcomer = int(np.flatnonzero(requests.history_length == 0)[-1])
    message = user_message(items, users, requests, newcomer)
    add_items(message, candidates(rng, items, requests, newcomer, 20), rng)
    files[EMPTY_SEQUENCE] = message
    return {
        name: message.SerializeToString(deterministic=True)
        for name, message in files.items()
    }


def candidates(
    rng: np.random.Generator, items: Items, requests: Requests, row: int, count: int
) -> list[str]:
    """Distinct item ids: half of what the user is after, half of anything."""
    after = np.flatnonzero(items.category == requests.session[row])
    near = rng.choice(after, min(count // 2, len(after)), replace=False)
    rest = np.setdiff1d(rng.permutation(len(items))[: 3 * count], near)
    other = rng.permutation(rest)[: count - len(near)]
    return [item_id(int(i) + 1) for i in rng.permutation(np.concatenate([near, other]))]


def user_message(items: Items, users: Users, requests: Requests, row: int) -> Any:
    """A PBRequest with the user's and the context's features, without items."""
    user = int(requests.user[row])
    message = torchrec.PBRequest()
    fields = message.user_features
    fields["user_id"].string_feature = user_id(user)
    fields["gender"].string_feature = GENDERS[users.gender[user]]
    fields["age"].int_feature = int(users.age[user])
    fields["city"].string_feature = city_name(int(users.city[user]))
    fields["spend_level"].int_feature = int(users.spend_level[user])
    fields["search_words"].string_feature = requests.words[row]
    length = int(requests.history_length[row])
    clicks = requests.history[row, :length]
    hours = requests.hours_ago[row, :length].astype(np.float32)
    fields[SEQUENCE].string_list.SetInParent()
    fields[SEQUENCE].string_list.features.extend(item_id(int(i) + 1) for i in clicks)
    fields[f"{SEQUENCE}__hours_ago"].float_list.SetInParent()
    fields[f"{SEQUENCE}__hours_ago"].float_list.features.extend(hours.tolist())
    # One value stands for all items.
    message.context_features["hour"].features.add().int_feature = int(
        requests.hour[row]
    )
    return message


def add_items(message: Any, ids: Sequence[str], rng: np.random.Generator) -> None:
    """Adds items with what the recall stage would say of them."""
    message.item_ids.extend(ids)
    sources = message.context_features["recall_source"].features
    for source in rng.integers(0, len(SOURCES), len(ids)):
        sources.add().string_feature = SOURCES[source]
