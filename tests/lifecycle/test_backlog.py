"""The end of listening, on real sockets."""

from __future__ import annotations

import socket
import threading

import pytest

from procserver.lifecycle.backlog import refuse_handshakes

SECONDS = 30.0


def listen(family: socket.AddressFamily, host: str) -> socket.socket:
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(16)
    return listener


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_who_is_in_the_backlog_is_served_and_who_comes_late_is_refused(
    family: socket.AddressFamily, host: str
) -> None:
    try:
        listener = listen(family, host)
    except OSError:
        pytest.skip("no such addresses here")
    address = listener.getsockname()
    early = socket.create_connection(address[:2], timeout=SECONDS)
    early.sendall(b"early")
    assert refuse_handshakes([listener])
    ends: list[BaseException | None] = []

    def come_late() -> None:
        try:
            socket.create_connection(address[:2], timeout=SECONDS).close()
            ends.append(None)
        except OSError as error:
            ends.append(error)

    late = threading.Thread(target=come_late)
    late.start()
    listener.settimeout(SECONDS)
    served, _ = listener.accept()
    listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    served.settimeout(SECONDS)
    assert served.recv(16) == b"early"
    served.sendall(b"answer")
    assert early.recv(16) == b"answer"
    late.join()
    assert isinstance(ends[0], ConnectionRefusedError), "and not reset"
    early.close()
    served.close()


def test_other_sockets_are_left_alone() -> None:
    listener = socket.socket(socket.AF_UNIX)
    assert refuse_handshakes([listener])
    listener.close()


def test_a_system_that_refuses_is_no_error() -> None:
    listener = listen(socket.AF_INET, "127.0.0.1")
    listener.close()
    assert not refuse_handshakes([listener])
