"""What drivers say, without the credentials that they repeat."""

from urllib.parse import parse_qsl, unquote, urlsplit

from procserver.config.secret import MASK


def scrub(text: object, url: str) -> str:
    """One line of ``text`` in which nothing secret of ``url`` is left."""
    line = " ".join(str(text).split())
    secrets, users = _parts(url)
    for secret in sorted({url, *secrets}, key=len, reverse=True):
        if secret:
            line = line.replace(secret, MASK)
    for user in users:
        for quote in "\"'":
            line = line.replace(
                f"user {quote}{user}{quote}", f"user {quote}{MASK}{quote}"
            )
    return line


def _parts(url: str) -> tuple[set[str], set[str]]:
    """Passwords and user names, as given and decoded."""
    secrets, users = set(), set()
    try:
        parts = urlsplit(url)
        secrets.add(parts.password or "")
        users.add(parts.username or "")
        for name, value in parse_qsl(parts.query):
            if name.lower() in ("password", "passwd", "sslpassword"):
                secrets.add(value)
    except ValueError:
        # Whatever it is, it holds no more than what is between : and @.
        secrets.add(url.partition("://")[2].rpartition("@")[0].partition(":")[2])
    for word in url.split() if "=" in url and "://" not in url else ():
        name, _, value = word.partition("=")
        if name in ("password", "sslpassword"):
            secrets.add(value.strip("'"))
        elif name == "user":
            users.add(value.strip("'"))
    decoded = {unquote(secret) for secret in secrets}
    return secrets | decoded, {u for u in users | {unquote(u) for u in users} if u}
