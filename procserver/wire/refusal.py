"""What a refused request is answered with: never empty, never valid protobuf."""

import re
from http import HTTPStatus

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")

_OWN = {450: "Queue Full", 499: "Client Closed Request"}


def error_body(code: str, message: str) -> bytes:
    """The text of an error answer.

    NOTE: some clients ignore the status and parse the body as protobuf. ``[``
    opens a group (field 11) that only the byte ``\\`` closes; backslashes and
    control characters are replaced, so no parser accepts the text.
    """
    text = _UNSAFE.sub("/", f"[{code}] {message}")
    return text.encode("utf-8", "replace")


def status_line(status: int) -> str:
    """Code and reason, those of the protocol's own codes included."""
    if status in _OWN:
        return f"{status} {_OWN[status]}"
    return f"{status} {HTTPStatus(status).phrase}"


def refusal(status: int, code: str, message: str) -> bytes:
    """A whole HTTP answer that ends its connection, for requests no app saw."""
    body = error_body(code, message)
    head = (
        f"HTTP/1.1 {status_line(status)}\r\n"
        "Connection: close\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body
