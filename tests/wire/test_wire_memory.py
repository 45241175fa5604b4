"""What a hostile body makes the decoders ask the system for: in proportion to it."""

import contextlib
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from procserver.errors import PredictFailed, RequestError, TooLarge
from procserver.wire import torch, torchrec
from tests.reference.wire_noise import length

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = 4 << 20
# Bytes for each byte of the body; a map entry of two bytes takes most.
MOST = 46
# What is read in parts or refused is not built from every part.
FEW = 20
AGE = b"\x0a\x03age"


def filled(unit):
    return unit * (SIZE // len(unit))


def user(feature):
    return length(2, AGE + length(2, feature))


def rows(features):
    return length(4, AGE + length(2, features))


BODIES = {
    "rows without a value": lambda: rows(filled(b"\x0a\x00")),
    "rows of two types": lambda: rows(filled(b"\x0a\x02\x08\x01\x0a\x02\x10\x01")),
    "integers beside text": lambda: rows(
        filled(b"\x0a\x02\x08\x01") + length(1, length(3, b"a"))
    ),
    "rows of lists in parts": lambda: rows(filled(length(1, length(21, b"") * 2))),
    "map entries without a key": lambda: user(length(7, filled(b"\x0a\x00"))),
    "map entries with one key": lambda: user(length(12, filled(b"\x0a\x03\x0a\x01a"))),
    "lists without values": lambda: user(length(26, filled(b"\x0a\x00"))),
    # An entry's value, sent in a million parts.
    "features in parts": lambda: length(2, AGE + filled(length(2, b"\x1a\x00"))),
    "rows in parts": lambda: length(4, AGE + filled(length(2, b"\x0a\x00"))),
    "texts in parts": lambda: length(4, AGE + filled(length(2, b"\x0a\x02\x1a\x00"))),
    "ids": lambda: filled(b"\x1a\x00"),
    "groups": lambda: filled(b"\x9b\x06\x9c\x06"),
    "output filter": lambda: filled(b"\x10\xff\x7f"),
    "packed output filter": lambda: length(2, filled(b"\xff\x7f")),
    "tensor in parts": lambda: length(3, AGE + filled(length(2, b""))),
    "dimensions": lambda: length(
        1, b"\x08\x09" + length(2, length(1, filled(b"\x01")))
    ),
}

CHEAP = {name for name in BODIES if "in parts" in name}


def decode_bounded(body, factor):
    """Decodes with no more memory than a body of this size may need."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + factor * len(body)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for decode in (torchrec.decode, torch.decode):
        with contextlib.suppress(RequestError):
            decode(body)


def main():
    """Prints the bodies that took too much, each decoded in a process of its own."""
    for name, build in BODIES.items():
        body = build()
        child = os.fork()
        if not child:
            try:
                decode_bounded(body, FEW if name in CHEAP else MOST)
            except MemoryError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(name)


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="its shadow is memory, too"
)
def test_memory_is_in_proportion_to_the_body():
    code = "from tests.wire.test_wire_memory import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("decode", [torchrec.decode, torch.decode])
def test_bodies_end_at_two_gib(decode):
    # Pages that nobody touches.
    with mmap.mmap(-1, 2**31) as body, pytest.raises(TooLarge, match="2147483648"):
        decode(body)


def test_answers_end_at_two_gib():
    half = np.zeros(2**28, np.float32)
    for outputs, said in (
        ([np.zeros(2**29, np.float32)], "output 0 is over 2 GiB"),
        ([half, half], "the response is over 2 GiB"),
    ):
        with pytest.raises(PredictFailed, match=said):
            torch.encode(outputs)
        with pytest.raises(PredictFailed, match="over 2 GiB"):
            torchrec.encode({str(i): array for i, array in enumerate(outputs)}, None)
