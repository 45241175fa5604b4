"""Mutated messages through the wire kernels, compared with upb one by one.

    PYTHONPATH=. python loadtest/fuzz.py --messages 10000000 [--seed 1]
    PYTHONPATH=. python loadtest/fuzz.py --seconds 60
    PYTHONPATH=. python loadtest/fuzz.py FILE...

A message is a finding if upb decodes it and ours does not (or otherwise, or to other
content), if what was decoded does not come back from an answer as it was, if decoding
takes over 10 ms per KB, or asks for memory out of proportion. Memory that grows over
the run is one as well. Bodies end at a page that may not be read; the last body is in
``DIR/last_<protocol>.bin`` when the process dies. Findings are written to DIR; the
exit status is 1 if there are any. Files are judged one by one.
"""

import argparse
import gc
import hashlib
import mmap
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cython_ext.wire_align import TensorScan
from procserver.wire.torch import TorchRequest
from tests.reference.guarded_page import GuardedPage
from tests.reference.wire_compressed import COMPRESS, agrees, unpacked
from tests.reference.wire_mutations import MAX_BODY, Mutator
from tests.reference.wire_noise import mutated, noisy
from tests.reference.wire_random import torch_request, torchrec_request
from tests.reference.wire_verdicts import (
    PROTOCOLS,
    TORCH,
    TORCHREC,
    VERDICTS,
    Protocol,
    agree,
)

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
CAPTURES = ROOT / "tests" / "data" / "captures" / "bodies"
RANDOM = {TORCHREC: torchrec_request, TORCH: torch_request}

NS_PER_KB = 10_000_000
MAX_SEED = 3000
# Most bytes that a compressed body may hold.
LIMIT = 1 << 20
# Memory that one message may ask for at most, beyond what the process has.
ADDRESS_SPACE = 768 << 20
GROWTH = 32 << 20
# Messages after which the pools of seeds are full: then memory may not grow.
SETTLED = 1_000_000
REPORT_EVERY = 30.0


class Finding(Exception):
    """What is wrong with a message."""


class LastBody:
    """A file that holds the body at hand when the process dies."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(MAX_BODY + 4))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def note(self, body: bytes) -> None:
        self._map[: len(body) + 4] = len(body).to_bytes(4, "little") + body


def rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def traits(result: Any) -> Iterator[Any]:
    """What is particular about an outcome: new ones make a body a new seed."""
    if isinstance(result, Exception):
        yield re.sub(r"\d+", "#", str(result).rsplit("]", 1)[-1])
    elif isinstance(result, TorchRequest):
        for place in (result.inputs or [], (result.map_inputs or {}).values()):
            for v in place:
                flags = v.values.flags.owndata
                yield int(v.dtype), v.values.ndim, min(v.values.size, 9), flags
    else:
        yield min(len(result.item_ids), 9), min(len(result.meta), 9)
        for section in (result.user, result.context, result.item):
            for column in section.values():
                yield int(column.kind), min(len(column), 9)


class Target:
    """One kind of body under fire."""

    def __init__(self, name: str, rng: random.Random, findings: Path) -> None:
        self.name = name
        self.rng = rng
        self.verdicts: Counter[str] = Counter()
        self.slowest = 0.0
        self._page = GuardedPage(MAX_BODY)
        self._last = LastBody(findings / f"last_{name}.bin")

    def step(self) -> bytes:
        """Judges one mutated body and returns it.

        :raises Finding: with the body as second argument
        """
        raise NotImplementedError

    def judge(self, body: bytes) -> Any:
        """What became of the body.

        :raises Exception: if it is not what it should be
        """
        raise NotImplementedError

    def held(self, body: bytes) -> memoryview:
        """The body before memory that may not be read, and noted for a crash."""
        self._last.note(body)
        return self._page.holding(body)

    def timed(self, call: Callable[[], Any], size: int) -> Any:
        """The call's result, within its time for a body of ``size`` bytes."""
        kilobytes = max(1.0, size / 1024)
        start = time.thread_time_ns()
        result = call()
        spent = (time.thread_time_ns() - start) / kilobytes
        if spent > NS_PER_KB / 20:
            # The clock also runs for page faults and for Python's own collector.
            for _ in range(3):
                start = time.thread_time_ns()
                call()
                spent = min(spent, (time.thread_time_ns() - start) / kilobytes)
            if spent > NS_PER_KB:
                raise Finding(f"{spent / 1e6:.1f} ms per KB")
        self.slowest = max(self.slowest, spent)
        return result


class Requests(Target):
    """Messages of one protocol."""

    def __init__(self, protocol: Protocol, rng: random.Random, findings: Path) -> None:
        super().__init__(protocol.name, rng, findings)
        self._protocol = protocol
        self._mutator = Mutator(rng, protocol.message.DESCRIPTOR)
        self._seen: set[Any] = set()
        for path in sorted((CORPUS / self.name).glob("*.bin")):
            self._mutator.add(path.read_bytes())
        for path in sorted(CAPTURES.glob(f"*_{self.name}.bin")):
            self._mutator.add(path.read_bytes())
        for _ in range(500):
            self._fresh()

    def _fresh(self) -> None:
        """A random message as a seed, written as no library writes it."""
        body = noisy(RANDOM[self._protocol](self.rng), self.rng)
        if len(body) < MAX_SEED:
            self._mutator.add(body)

    def step(self) -> bytes:
        if self.rng.random() < 0.002:
            self._fresh()
        body = self._mutator.body()
        new = set(traits(self.judge(body))) - self._seen
        if new and len(body) < MAX_SEED:
            self._seen |= new
            self._mutator.add(body)
        return body

    def judge(self, body: bytes) -> Any:
        try:
            return self._judge(body)
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}", body) from error

    def _judge(self, body: bytes) -> Any:
        """The decoded request, or the error that refuses it."""
        view = self.held(body)

        def decode() -> Any:
            try:
                return self._protocol.decode(view)
            except tuple(VERDICTS) as error:
                return error

        result = self.timed(decode, len(body))
        if isinstance(result, Exception):
            ours = VERDICTS[type(result)]
            self.verdicts[ours] += 1
        else:
            ours = self._protocol.content(result)
            self._protocol.answer(result)
            self.verdicts["accepted"] += 1
        theirs = self._protocol.by_upb(body)
        if not agree(ours, theirs):
            raise Finding(f"ours: {str(ours)[:300]}\nupb:  {str(theirs)[:300]}")
        if self._protocol is TORCH and body:
            whole = scanned(view, len(body))
            parts = scanned(view, 1 + self.rng.randrange(len(body)))
            if whole != parts or sum(whole) > len(body):
                raise Finding(f"scans: {whole}, {parts}")
        return result


def scanned(body: memoryview, step: int) -> tuple[int, int]:
    """Place and length of the largest tensor in a body that comes in steps."""
    scan = TensorScan(len(body))
    got = 0
    while got < len(body):
        got = min(len(body), got + step)
        scan.feed(body, got)
    assert scan.done
    return scan.place, scan.length


class Compressed(Target):
    """Bodies of every format, told and untold."""

    def __init__(self, rng: random.Random, findings: Path) -> None:
        super().__init__("compressed", rng, findings)
        plain = [path.read_bytes() for path in sorted(CORPUS.glob("*/*.bin"))]
        plain += [torch_request(rng).SerializeToString() for _ in range(50)]
        plain += [bytes(n) for n in (0, 1, 70, 5000, 300_000)]
        self._seeds = [pack(body) for body in plain for pack in COMPRESS.values()]
        self._seeds += plain
        self._seeds += [path.read_bytes() for path in sorted(CAPTURES.glob("*"))]

    def step(self) -> bytes:
        body = self.rng.choice(self._seeds)
        for _ in range(1 + (self.rng.random() < 0.3)):
            body = mutated(body, self.rng)
        if self.rng.random() < 0.1:
            body += self.rng.choice(self._seeds)
        body = body[:MAX_BODY]
        self.judge(body)
        return body

    def judge(self, body: bytes) -> Any:
        name = self.rng.choice([None, None, *COMPRESS])
        view = self.held(body)
        try:
            content = self.timed(lambda: unpacked(view, LIMIT, name), len(body))
            if content is not None and len(content) > max(LIMIT, len(body)):
                raise Finding(f"{len(content)} bytes came out")
            if not agrees(body, content, name):
                raise Finding(f"as {name}: no library reads the same")
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}", body) from error
        if content is None:
            self.verdicts["refused"] += 1
        else:
            self.verdicts["plain" if content == body else "unpacked"] += 1
        return content


def all_targets(rng: random.Random, findings: Path) -> list[Target]:
    """In turn; compressed bodies, which others wrote the readers of, less often."""
    requests: list[Target] = [Requests(p, rng, findings) for p in PROTOCOLS]
    return [*requests * 4, Compressed(rng, findings)]


def judge_files(paths: list[Path], findings: Path) -> int:
    """Judges single files, as what their folder or name says."""
    bad = 0
    targets = all_targets(random.Random(0), findings)
    for path in paths:
        body = path.read_bytes()
        if path.name.startswith("last_"):
            body = body[4:][: int.from_bytes(body[:4], "little")]
        for target in dict.fromkeys(targets):
            if target.name not in (path.parent.name, *re.split("[_.]", path.name)):
                continue
            try:
                result = target.judge(body)
            except Finding as finding:
                bad += 1
                print(f"{path}: {finding.args[0]}")
            else:
                print(f"{path}: as it should be: {str(result)[:200]}")
    return 1 if bad else 0


def limit_memory() -> None:
    """One message that asks for much memory gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * mmap.PAGESIZE + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Run:
    """A run over all protocols in turn, and its account."""

    def __init__(self, targets: list[Target], findings: Path) -> None:
        self._targets = targets
        self._findings = findings
        self._start = time.perf_counter()
        self._settled = 0
        self.bounded = True
        self.messages = self.found = self.bytes = 0

    def go(self, messages: int, seconds: float) -> None:
        """Runs until either is reached, or 20 findings are."""
        report = REPORT_EVERY
        while self.messages < messages and self.found < 20:
            target = self._targets[self.messages % len(self._targets)]
            self.messages += 1
            try:
                self.bytes += len(target.step())
            except Finding as finding:
                self._write(target, *finding.args)
            if self.messages == SETTLED:
                gc.collect()
                self._settled = rss()
            if self.messages % 256 == 0:
                elapsed = time.perf_counter() - self._start
                if elapsed > seconds:
                    break
                if elapsed > report:
                    report += REPORT_EVERY
                    self.report()

    def _write(self, target: Target, said: str, body: bytes) -> None:
        self.found += 1
        name = f"{target.name}_{hashlib.sha1(body).hexdigest()[:12]}.bin"
        (self._findings / name).write_bytes(body)
        print(f"FINDING {self._findings / name}: {said}", flush=True)

    def grown(self) -> int:
        """Bytes of memory gained since the pool was full."""
        gc.collect()
        return rss() - self._settled if self._settled else 0

    def report(self) -> None:
        elapsed = time.perf_counter() - self._start
        cpu = time.process_time()
        rate = self.messages / cpu * 3600 / 1e6
        print(
            f"{self.messages} messages, {self.bytes >> 20} MiB in {elapsed:.0f} s "
            f"({cpu:.0f} s of CPU: {rate:.1f} million per core-hour), "
            f"{self.found} findings, {rss() >> 20} MiB resident, "
            f"{self.grown() >> 10} KiB grown",
            flush=True,
        )

    def close(self) -> int:
        self.report()
        for target in dict.fromkeys(self._targets):
            counts = ", ".join(f"{n} {v}" for v, n in target.verdicts.most_common())
            print(
                f"  {target.name}: {counts}; slowest decoding "
                f"{target.slowest / 1e6:.2f} ms per KB (bar 10)"
            )
        if self.bounded and self.grown() > GROWTH:
            self.found += 1
            print(f"FINDING: memory grew by {self.grown() >> 10} KiB")
        return 1 if self.found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="judge these only")
    parser.add_argument("--messages", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument(
        "--sanitized",
        action="store_true",
        help="bounds of memory and growth are for ordinary builds",
    )
    given = parser.parse_args()
    given.findings.mkdir(parents=True, exist_ok=True)
    if given.files:
        return judge_files(given.files, given.findings)
    rng = random.Random(given.seed)
    run = Run(all_targets(rng, given.findings), given.findings)
    run.bounded = not given.sanitized
    if run.bounded:
        limit_memory()
    run.go(given.messages, given.seconds)
    return run.close()


if __name__ == "__main__":
    sys.exit(main())
