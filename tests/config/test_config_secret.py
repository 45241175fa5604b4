"""Secrets: masked, picklable, compared safely; URLs lose their credentials."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver.config.secret import Secret, Url, mask_url

CANARY = "c4n4ry"


@pytest.mark.parametrize("secret", [Secret(CANARY), Url(f"oss://id:{CANARY}@bucket/x")])
def test_masked_however_it_is_shown(secret: Secret) -> None:
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        f"{[secret]}",
    ):
        assert CANARY not in text
        assert "***" in text
    assert CANARY in secret.reveal()


@pytest.mark.parametrize("secret", [Secret(CANARY), Url(f"s3://a:{CANARY}@b")])
def test_pickles_and_copies_as_itself(secret: Secret) -> None:
    for twin in (pickle.loads(pickle.dumps(secret)), copy.deepcopy(secret)):
        assert type(twin) is type(secret)
        assert twin == secret
        assert twin.reveal() == secret.reveal()


def test_equality() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("é")) == hash(Secret("é"))
    assert not Secret("")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("oss://bucket/path", "oss://bucket/path"),
        ("/plain/path", "/plain/path"),
        ("items@2/x", "items@2/x"),
        (
            f"postgresql://ak:{CANARY}@host:80/db?sslmode=require",
            "postgresql://***@host:80/db?sslmode=***",
        ),
        (f"redis://:{CANARY}@host/0", "redis://***@host/0"),
        (f"postgresql://ak:a/{CANARY}+b@c?d@host/db", "postgresql://***@host/db"),
        (f"https://host/x?sig={CANARY}&v=1", "https://host/x?sig=***&v=***"),
        (f"host=h password={CANARY} user=u", "host=h password=*** user=u"),
        (f"host=h password='{CANARY} x'", "host=h password=***"),
    ],
)
def test_url_masks(url: str, masked: str) -> None:
    assert mask_url(url) == masked


# A "?" in a password would be taken for the query only after the last "@".
@given(password=st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S"))))
def test_no_password_survives(password: str) -> None:
    secret = f"{CANARY}{password}{CANARY}"
    assert CANARY not in mask_url(f"postgresql://user:{secret}@host:5432/db")


def test_scheme() -> None:
    assert Url("OSS://b/x").scheme == "oss"
    assert Url("C/x").scheme == ""
    assert Url("/a://b").scheme == ""
