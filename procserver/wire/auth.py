"""Who may call: the raw token, or the signature of the EAS SDKs.

::

    canonical     = "POST" LF content-md5 LF content-type LF date LF path[?query]
    Authorization = "EAS " + base64(hmac-sha1(key = token, canonical))

The three header values are taken as received: clients send wrong MD5 sums and
local time labelled GMT, so neither is ever checked against the body or clock.
"""

import base64
import hmac
from collections.abc import Mapping

from procserver.errors import Unauthorized


class Authenticator:
    """Checks requests against one token; without a token everybody may call."""

    def __init__(self, token: str | None) -> None:
        self._token = (token or "").encode()

    def __repr__(self) -> str:
        return f"<Authenticator {'token set' if self._token else 'open'}>"

    def check(
        self, method: str, path_and_query: str, headers: Mapping[str, str]
    ) -> None:
        """Returns if the request may proceed.

        Accepted: ``<token>``, ``Bearer <token>`` and ``EAS <signature>``. Every
        comparison takes the same time wherever the values differ.

        :param method: as received; the SDKs sign POST
        :param path_and_query: as received, percent-encoding untouched
        :param headers: names in any case
        :raises Unauthorized: always with the same message
        """
        if not self._token:
            return
        # WSGI hands header bytes over as latin-1 text.
        found = {name.lower(): value for name, value in headers.items()}
        sent = _octets(found.get("authorization", ""))
        accepted = hmac.compare_digest(sent, self._token)
        accepted |= hmac.compare_digest(sent, b"Bearer " + self._token)
        signature = self._signature(method, path_and_query, found)
        accepted |= hmac.compare_digest(sent, b"EAS " + signature)
        if not accepted:
            raise Unauthorized(
                "Authorization must be the service's token or a valid EAS signature"
            )

    def _signature(
        self, method: str, path_and_query: str, headers: Mapping[str, str]
    ) -> bytes:
        canonical = "\n".join(
            [
                method,
                headers.get("content-md5", ""),
                headers.get("content-type", ""),
                headers.get("date", ""),
                path_and_query,
            ]
        )
        digest = hmac.digest(self._token, _octets(canonical), "sha1")
        return base64.b64encode(digest)


def _octets(text: str) -> bytes:
    """The bytes that a header was received as."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()
