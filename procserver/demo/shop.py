"""The synthetic shop: items and users that share a space of interests.

Everything is drawn from one seed. Items and users are points of one latent space:
a category is a point near its department, an item a point near its category and
brand, a user a mixture of a few categories. What a model can see of it are the
ordinary columns of a shop (category, brand, price, tags, statistics).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEPARTMENTS = {
    "electronics": ["phones", "laptops", "headphones", "cameras"],
    "home": ["lamps", "chairs", "bedding", "storage"],
    "kitchen": ["coffee", "cookware", "knives", "tea"],
    "sports": ["running", "cycling", "climbing", "yoga"],
    "fashion": ["shoes", "jackets", "dresses", "watches"],
    "books": ["novels", "history", "science", "comics"],
    "garden": ["seeds", "tools", "furniture", "pots"],
    "toys": ["puzzles", "models", "dolls", "board_games"],
}
CATEGORIES = [f"{top}/{leaf}" for top, leaves in DEPARTMENTS.items() for leaf in leaves]
DEPARTMENT_OF = np.repeat(
    np.arange(len(DEPARTMENTS)), [len(leaves) for leaves in DEPARTMENTS.values()]
)
STYLES = [
    "classic", "light", "compact", "family", "studio", "travel", "pro", "eco",
    "vintage", "soft", "bold", "mini", "outdoor", "gift", "smart", "handmade",
]  # fmt: skip
GENDERS = ["female", "male", "unknown"]
BRANDS = 400
CITIES = 60
PRICE_LEVELS = 10
DIM = 8


@dataclass(frozen=True, slots=True)
class Items:
    """One row per item, in id order: what is hidden and what is shown."""

    latent: Floats  # (items, DIM)
    category: Ints  # index into CATEGORIES
    brand: Ints
    price: Floats
    price_level: Ints  # decile of the price within the category
    quality: Floats
    popularity: Floats  # weight by which items are shown and clicked, sum 1
    table: pa.Table  # what the service sees, see `item_table`

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True, slots=True)
class Users:
    """One row per user."""

    latent: Floats  # (users, DIM)
    interest: Floats  # (users, categories): probability of each category
    gender: Ints  # index into GENDERS
    age: Ints
    city: Ints
    spend_level: Ints  # the price level that the user looks for

    def __len__(self) -> int:
        return len(self.gender)


def item_id(number: int) -> str:
    """Id of the item in row ``number - 1``: ``item_0001`` is the first."""
    return f"item_{number:04d}"


def user_id(number: int) -> str:
    """Id of user ``number``: a hexadecimal number, ``u001d`` is user 29."""
    return f"u{number:04x}"


def unit(points: Floats) -> Floats:
    """The same points at length 1."""
    scaled: Floats = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return scaled


@dataclass(frozen=True, slots=True)
class Map:
    """Where categories and brands lie in the space of interests."""

    category: Floats  # (categories, DIM)
    brand: Floats  # (BRANDS, DIM)
    category_brands: Ints  # (categories, 12): the brands sold in a category
    category_price: Floats  # log of the middle price


def draw_map(rng: np.random.Generator) -> Map:
    top = rng.normal(size=(len(DEPARTMENTS), DIM))
    category = unit(top[DEPARTMENT_OF] + 0.9 * rng.normal(size=(len(CATEGORIES), DIM)))
    return Map(
        category=category,
        brand=unit(rng.normal(size=(BRANDS, DIM))),
        category_brands=np.stack(
            [rng.choice(BRANDS, 12, replace=False) for _ in CATEGORIES]
        ),
        category_price=rng.normal(3.6, 0.9, len(CATEGORIES)),
    )


def draw_items(rng: np.random.Generator, where: Map, count: int) -> Items:
    category = rng.choice(
        len(CATEGORIES), count, p=rng.dirichlet([4] * len(CATEGORIES))
    )
    brand = where.category_brands[category, rng.integers(0, 12, count)]
    latent = unit(
        where.category[category]
        + 0.45 * where.brand[brand]
        + 0.12 * rng.normal(size=(count, DIM))
    )
    premium = rng.normal(0, 0.4, BRANDS)[brand]
    price = np.exp(where.category_price[category] + premium + rng.normal(0, 0.5, count))
    price = np.maximum(price.round(2), 0.5)
    quality = rng.normal(size=count)
    weight = np.exp(1.1 * rng.normal(size=count) + 0.4 * quality)
    popularity = weight / weight.sum()
    level = levels_within(category, price)
    table = item_table(rng, category, brand, price, level, quality, popularity)
    return Items(latent, category, brand, price, level, quality, popularity, table)


def levels_within(group: Ints, value: Floats) -> Ints:
    """Decile (0..9) of every value among the values of its group."""
    order = np.lexsort((value, group))
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group))
    level: Ints = (rank - starts[group]) * PRICE_LEVELS // sizes[group]
    return level


def item_table(
    rng: np.random.Generator,
    category: Ints,
    brand: Ints,
    price: Floats,
    level: Ints,
    quality: Floats,
    popularity: Floats,
) -> pa.Table:
    """The item features of the service: several types, noisy where life is noisy.

    ``stats`` holds three float32: log10 of impressions, clicks per impression and
    orders per click, as a nightly job would have counted them.
    """
    count = len(category)
    shown = popularity * count * 4000 * np.exp(rng.normal(0, 0.2, count))
    ctr = 0.1 * np.exp(0.25 * quality + rng.normal(0, 0.15, count))
    cvr = 0.1 * np.exp(0.35 * quality + rng.normal(0, 0.25, count))
    stats = np.stack([np.log10(1 + shown), ctr, cvr], axis=1).astype(np.float32)
    rating = np.clip(3.8 + 0.5 * quality + rng.normal(0, 0.2, count), 1, 5)
    styles = rng.integers(0, len(STYLES), (count, 2))
    leaves = [name.split("/")[1] for name in CATEGORIES]
    titles = [
        f"{STYLES[a]} {leaves[c].replace('_', ' ')} by brand {b}"
        for (a, _), c, b in zip(styles.tolist(), category, brand, strict=True)
    ]
    tags = [
        [leaves[c], STYLES[a]] if a == b else [leaves[c], STYLES[a], STYLES[b]]
        for (a, b), c in zip(styles.tolist(), category, strict=True)
    ]
    return pa.table(
        {
            "item_id": pa.array([item_id(n + 1) for n in range(count)]),
            "title": pa.array(titles),
            "category": pa.array([CATEGORIES[c] for c in category]),
            "brand": pa.array(brand, pa.int32()),
            "price": pa.array(price, pa.float64()),
            "price_level": pa.array(level, pa.int32()),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "rating": pa.array(rating, pa.float32()),
            "sales": pa.array((shown * ctr * cvr).astype(np.int64), pa.int64()),
            "stats": pa.ListArray.from_arrays(
                np.arange(0, 3 * count + 1, 3, dtype=np.int32), stats.reshape(-1)
            ),
        }
    )


def draw_users(rng: np.random.Generator, where: Map, count: int) -> Users:
    gender = rng.choice(len(GENDERS), count, p=[0.47, 0.45, 0.08])
    age = np.clip(rng.normal(36, 12, count), 14, 80).astype(np.int64)
    # Genders and age bands lean towards some categories, so that a user without
    # any history is not a blank.
    by_gender = 0.8 * rng.normal(size=(len(GENDERS), len(CATEGORIES)))
    by_age = 0.8 * rng.normal(size=(7, len(CATEGORIES)))
    lean = by_gender[gender] + by_age[np.minimum(age // 12, 6)]
    taste = 1.3 * rng.gumbel(size=lean.shape) + lean
    interest = np.exp(taste - taste.max(axis=1, keepdims=True))
    interest /= interest.sum(axis=1, keepdims=True)
    latent = unit(interest @ where.category + 0.1 * rng.normal(size=(count, DIM)))
    spend = np.clip(rng.normal(4 + age / 30, 2.2, count), 0, PRICE_LEVELS - 1)
    return Users(
        latent=latent,
        interest=interest,
        gender=gender,
        age=age,
        city=rng.integers(0, CITIES, count),
        spend_level=spend.astype(np.int64),
    )
