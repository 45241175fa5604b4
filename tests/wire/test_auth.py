"""Raw tokens, bearer tokens and the signatures that real SDKs sent."""

import json
from pathlib import Path

import pytest

from procserver.errors import Unauthorized
from procserver.wire.auth import Authenticator

FILE = Path(__file__).parent.parent / "data" / "captures" / "signature_vectors.json"
VECTORS = json.loads(FILE.read_text())
TOKEN = "dG9rZW4tZm9yLXRlc3Q="


def headers_of(vector):
    return {
        "Content-Md5": vector["content_md5"],
        "DATE": vector["date"],
        "content-type": vector["content_type"],
        "Authorization": vector["authorization"],
    }


def accepts(authenticator, method, path, headers):
    try:
        authenticator.check(method, path, headers)
    except Unauthorized:
        return False
    return True


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["source"])
def test_recorded_signatures(vector):
    authenticator = Authenticator(vector["token"])
    headers = headers_of(vector)
    path = vector["path"]
    assert accepts(authenticator, "POST", path, headers)
    for name in headers:
        for altered in (headers[name] + "x", headers[name][:-2], ""):
            changed = {**headers, name: altered}
            assert not accepts(authenticator, "POST", path, changed)
        missing = {k: v for k, v in headers.items() if k != name}
        assert not accepts(authenticator, "POST", path, missing)
    assert not accepts(authenticator, "POST", path + "/", headers)
    assert not accepts(authenticator, "POST", path + "?a=b", headers)
    assert not accepts(authenticator, "GET", path, headers)
    assert not accepts(Authenticator("another"), "POST", path, headers)


def test_there_are_vectors_of_both_sdks_and_with_a_query():
    assert len(VECTORS) >= 58
    assert {v["source"].split("_")[0] for v in VECTORS} == {"java", "python"}
    assert any("?" in v["path"] for v in VECTORS)
    # Java leaves leading zeros out of the MD5 that it signs.
    assert any(not v["content_md5_matches_body"] for v in VECTORS)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_raw_and_bearer_token(method, name):
    authenticator = Authenticator(TOKEN)
    for value in (TOKEN, f"Bearer {TOKEN}"):
        assert accepts(authenticator, method, "/", {name: value})


@pytest.mark.parametrize(
    "value",
    ["", " ", "Bearer", "Bearer ", "EAS", "EAS ", "EAS x", TOKEN[:-1], TOKEN + "=",
     TOKEN.lower(), f"bearer{TOKEN}", "Basic " + TOKEN, "日本", "é", "EAS é"],
)  # fmt: skip
def test_refusals_all_read_the_same(value):
    authenticator = Authenticator(TOKEN)
    with pytest.raises(Unauthorized) as refusal:
        authenticator.check("POST", "/", {"Authorization": value})
    with pytest.raises(Unauthorized) as without:
        authenticator.check("POST", "/", {})
    assert str(refusal.value) == str(without.value)
    assert TOKEN not in str(refusal.value)
    assert refusal.value.status == 401


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_means_an_open_service(token):
    authenticator = Authenticator(token)
    authenticator.check("GET", "/", {})
    authenticator.check("POST", "/", {"Authorization": "anything"})


def test_a_token_beyond_ascii():
    # WSGI servers hand over header bytes as latin-1.
    token = "密码"
    assert accepts(
        Authenticator(token), "GET", "/", {"a": "", "authorization": _wsgi(token)}
    )


def _wsgi(text):
    return text.encode().decode("latin-1")


def test_the_token_is_not_in_the_repr():
    assert TOKEN not in repr(Authenticator(TOKEN))
    assert TOKEN not in repr(vars(Authenticator)) + str(Authenticator(TOKEN))
