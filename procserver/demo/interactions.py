"""What users did in the shop: requests, click histories, clicks and orders.

A request belongs to a user who is, for the moment, after one category (the session
interest). Nothing shows that interest directly; the newest clicks of the history do,
which is what the attention part of the model is there to find.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from procserver.demo.shop import (
    CATEGORIES,
    DEPARTMENT_OF,
    STYLES,
    Floats,
    Ints,
    Items,
    Users,
)

HISTORY = 20  # clicks kept per request
SHOWN = 8  # items shown per request
SOURCES = ["i2i", "popular", "explore"]


@dataclass(frozen=True, slots=True)
class Requests:
    """One row per request, in the order of time."""

    user: Ints
    hour: Ints  # of the day
    session: Ints  # the category that the user is after
    history: Ints  # (requests, HISTORY) item rows, newest first
    hours_ago: Floats  # (requests, HISTORY), rising
    history_length: Ints
    words: list[str]  # what the user searched for, ';' between words

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True)
class Impressions:
    """One row per item shown; ``SHOWN`` neighbouring rows are one request."""

    request: Ints
    item: Ints
    source: Ints  # index into SOURCES
    click: npt.NDArray[np.bool_]
    order: npt.NDArray[np.bool_]  # only where clicked


class Shelves:
    """Draws items by popularity, from the whole shop or from one category."""

    def __init__(self, items: Items) -> None:
        self.order = np.argsort(items.category, kind="stable")
        self.total = np.concatenate([[0], np.cumsum(items.popularity[self.order])])
        sizes = np.bincount(items.category, minlength=len(CATEGORIES))
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes

    def of_category(self, rng: np.random.Generator, category: Ints) -> Ints:
        """One item row per given category (same shape)."""
        low = self.total[self.starts[category]]
        high = self.total[self.ends[category]]
        at = np.searchsorted(
            self.total, low + rng.random(category.shape) * (high - low), side="right"
        )
        # A category without items yields its neighbour's: harmless in a demo.
        drawn: Ints = self.order[np.clip(at - 1, 0, len(self.order) - 1)]
        return drawn

    def popular(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
        """Item rows of this shape, from the whole shop."""
        at = np.searchsorted(self.total, rng.random(shape), side="right")
        drawn: Ints = self.order[np.clip(at - 1, 0, len(self.order) - 1)]
        return drawn


def draw_categories(rng: np.random.Generator, interest: Floats, width: int) -> Ints:
    """``width`` categories per row, by the row's probabilities."""
    total = np.cumsum(interest, axis=1)
    dice = rng.random((len(interest), width))
    drawn: Ints = (dice[:, :, None] > total[:, None, :]).sum(axis=2)
    within: Ints = np.minimum(drawn, len(CATEGORIES) - 1)
    return within


def nearer_price(first: Ints, second: Ints, items: Items, wanted: Ints) -> Ints:
    """Of two items, the one whose price level is nearer to the wanted level."""
    off_first = np.abs(items.price_level[first] - wanted)
    off_second = np.abs(items.price_level[second] - wanted)
    return np.where(off_first <= off_second, first, second)


def draw_requests(
    rng: np.random.Generator, items: Items, users: Users, count: int
) -> Requests:
    shelves = Shelves(items)
    user = rng.integers(0, len(users), count)
    interest = users.interest[user]
    session = draw_categories(rng, interest, 1)[:, 0]
    newest = rng.poisson(4, count)
    length = np.minimum(newest + rng.poisson(9, count), HISTORY)
    length[rng.random(count) < 0.05] = 0  # users who come for the first time
    category = draw_categories(rng, interest, HISTORY)
    recent = np.arange(HISTORY) < newest[:, None]
    category = np.where(recent, session[:, None], category)
    wanted = users.spend_level[user][:, None]
    history = nearer_price(
        shelves.of_category(rng, category),
        shelves.of_category(rng, category),
        items,
        wanted,
    )
    gaps = np.where(recent, 0.1, 12.0) * rng.exponential(1.0, category.shape)
    searched = rng.integers(0, 4, count)
    noise = rng.integers(0, len(STYLES), (count, 3))
    words = [
        ";".join([CATEGORIES[c].split("/")[1], *(STYLES[s] for s in styles[: n - 1])])
        if n
        else ""
        for c, n, styles in zip(session, searched, noise.tolist(), strict=True)
    ]
    return Requests(
        user=user,
        hour=rng.integers(0, 24, count),
        session=session,
        history=history,
        hours_ago=np.cumsum(gaps, axis=1).round(2),
        history_length=length,
        words=words,
    )


def draw_impressions(
    rng: np.random.Generator, items: Items, users: Users, requests: Requests
) -> Impressions:
    shelves = Shelves(items)
    count = len(requests)
    source = rng.choice(len(SOURCES), (count, SHOWN), p=[0.45, 0.3, 0.25])
    interest = users.interest[requests.user]
    near = draw_categories(rng, interest, SHOWN)
    near = np.where(rng.random(near.shape) < 0.4, requests.session[:, None], near)
    item = np.choose(
        source,
        [
            shelves.of_category(rng, near),
            shelves.popular(rng, source.shape),
            rng.integers(0, len(items), source.shape),
        ],
    )
    row = np.repeat(np.arange(count), SHOWN)
    shown = item.reshape(-1)
    likes, buys = preferences(items, users, requests, row, shown)
    click = rng.random(len(row)) < sigmoid(likes)
    order = click & (rng.random(len(row)) < sigmoid(buys))
    return Impressions(row, shown, source.reshape(-1), click, order)


def preferences(
    items: Items, users: Users, requests: Requests, row: Ints, item: Ints
) -> tuple[Floats, Floats]:
    """Log-odds of a click, and of an order after a click, per impression."""
    user = requests.user[row]
    session = requests.session[row]
    category = items.category[item]
    affinity = np.einsum("ij,ij->i", users.latent[user], items.latent[item])
    same = category == session
    related = DEPARTMENT_OF[category] == DEPARTMENT_OF[session]
    off_price = np.abs(items.price_level[item] - users.spend_level[user])
    held = np.arange(HISTORY) < requests.history_length[row][:, None]
    known = items.brand[requests.history[row]] == items.brand[item][:, None]
    known_brand = (held & known).any(axis=1)
    fame = np.log(items.popularity[item] * len(items))
    evening = np.cos((requests.hour[row] - 20) / 24 * 2 * np.pi)
    likes = (
        -3.6
        + 1.8 * affinity
        + 1.5 * same
        + 0.6 * related
        + 0.7 * known_brand
        - 0.22 * off_price
        + 0.25 * fame
        + 0.25 * items.quality[item]
        + 0.2 * evening
    )
    buys = (
        -1.6
        + 0.8 * affinity
        + 0.5 * same
        + 0.9 * known_brand
        - 0.35 * off_price
        + 0.6 * items.quality[item]
    )
    return likes, buys


def sigmoid(x: Floats) -> Floats:
    p: Floats = 1 / (1 + np.exp(-x))
    return p
