"""What the refresher's reports may show."""

import pytest

from procserver.lifecycle.news import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "no such file: s3://key:se+cret@bucket/items",
            "no such file: s3://***@bucket/items",
        ),
        ("no such file: /data/a@b.parquet", "no such file: /data/a@b.parquet"),
        ("oss://bucket/a@b and more", "oss://bucket/a@b and more"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
