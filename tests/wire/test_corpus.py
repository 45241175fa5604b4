"""Every message of ``tests/corpus``, as it is and cut, against upb."""

import random
from pathlib import Path

import pytest

from tests.reference.guarded_page import GuardedPage
from tests.reference.wire_mutations import Mutator
from tests.reference.wire_verdicts import PROTOCOLS, TORCH, TORCHREC, agree

CORPUS = Path(__file__).parent.parent / "corpus"
CASES = [
    pytest.param(protocol, path.read_bytes(), id=f"{protocol.name}/{path.stem}")
    for protocol in PROTOCOLS
    for path in sorted((CORPUS / protocol.name).glob("*.bin"))
]
PAGE = GuardedPage()


@pytest.mark.parametrize(("protocol", "body"), CASES)
def test_a_message_means_what_upb_says(protocol, body):
    for n in range(len(body) + 1):
        ours = protocol.by_us(PAGE.holding(body[:n]))
        assert agree(ours, protocol.by_upb(body[:n])), n


def test_the_corpus_is_small():
    assert len(CASES) > 100
    assert all(len(case.values[1]) < 1024 for case in CASES)


def test_mutated_messages_are_of_every_verdict():
    # Else a fuzz run would prove little: most of what it tries must be nearly right.
    for protocol in (TORCHREC, TORCH):
        mutator = Mutator(random.Random(3), protocol.message.DESCRIPTOR)
        for case in CASES:
            if case.values[0] is protocol:
                mutator.add(case.values[1])
        verdicts = {"accepted": 0}
        for _ in range(2000):
            body = mutator.body()
            ours = protocol.by_us(body)
            assert agree(ours, protocol.by_upb(body)), body.hex()
            key = ours if isinstance(ours, str) else "accepted"
            verdicts[key] = verdicts.get(key, 0) + 1
        assert len(verdicts) == 3
        assert min(verdicts.values()) > 10, verdicts
        assert verdicts["accepted"] > 300, verdicts


def test_the_same_seed_gives_the_same_messages():
    def bodies():
        mutator = Mutator(random.Random(7), TORCH.message.DESCRIPTOR)
        for case in CASES:
            if case.values[0] is TORCH:
                mutator.add(case.values[1])
        return [mutator.body() for _ in range(200)]

    assert bodies() == bodies()
