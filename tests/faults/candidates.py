"""Bad candidates: what a reload must refuse, and the reason that it must give."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_models
from faulty import Service

# Makes the service's next reload a bad one; what it returns makes it good again.
Spoil = Callable[[Service], Callable[[], None]]


@dataclass(frozen=True)
class Bad:
    """One kind; ``reason`` stands in the log, the metrics and the metadata."""

    spoil: Spoil
    reason: str


def damaged(damage: Callable[[Path], object], model: str = "good2") -> Spoil:
    """A version with damage."""

    def spoil(service: Service) -> Callable[[], None]:
        version = service.publish(model)
        damage(version)
        return lambda: service.withdraw(version)

    return spoil


def model(name: str) -> Spoil:
    """A version that is whole, and bad."""
    return damaged(lambda version: None, name)


def edited(edit: Callable[[dict[str, Any]], object]) -> Spoil:
    """A service JSON that says something else."""

    def spoil(service: Service) -> Callable[[], None]:
        kept = service.config.read_bytes()
        service.change(edit)
        return lambda: restore(service.config, kept)

    return spoil


def restore(path: Path, content: bytes) -> None:
    """The file as it was, in one rename."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.replace(path)


def cut(version: Path) -> None:
    script = version / "scripted_model.pt"
    script.write_bytes(script.read_bytes()[:-2000])


def flip(version: Path) -> None:
    """One bit of the first weight, which torch does not notice."""
    script = version / "scripted_model.pt"
    with zipfile.ZipFile(script) as archive:
        first = next(i for i in archive.infolist() if i.filename.endswith("/data/0"))
    data = bytearray(script.read_bytes())
    name, extra = struct.unpack_from("<HH", data, first.header_offset + 26)
    data[first.header_offset + 30 + name + extra] ^= 1
    script.write_bytes(data)


def no_archive(version: Path) -> None:
    (version / "scripted_model.pt").write_text("this is no model\n" * 100)


def other_features(version: Path) -> None:
    features = {"features": fault_models.FG["features"][1:]}
    (version / "fg.json").write_text(json.dumps(features))


def with_fbgemm(version: Path) -> None:
    with zipfile.ZipFile(version / "scripted_model.pt", "a") as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/code/more.py", "ops.fbgemm.segment_sum_csr(1, x, x)\n")


def half_json(service: Service) -> Callable[[], None]:
    kept = service.config.read_bytes()
    restore(service.config, kept[: len(kept) // 2])
    return lambda: restore(service.config, kept)


BAD: dict[str, Bad] = {
    "truncated": Bad(damaged(cut), "scripted_model.pt"),
    "flipped": Bad(damaged(flip), "scripted_model.pt"),
    "no archive": Bad(damaged(no_archive), "scripted_model.pt"),
    "no fg.json": Bad(damaged(lambda v: (v / "fg.json").unlink()), "fg.json"),
    "another fg.json": Bad(damaged(other_features), "does it belong to this fg.json"),
    "outputs": Bad(model("renamed"), "returns no 'score' any more"),
    "NaN": Bad(model("nan"), "holds NaN"),
    "crash": Bad(model("fatal"), "died before it was ready"),
    "fbgemm": Bad(damaged(with_fbgemm), "fbgemm operators, which are not installed"),
    "half a JSON": Bad(half_json, "JSON"),
    "ill-typed": Bad(
        edited(lambda c: c["model_config"].update(fg_threads="many")), "fg_threads"
    ),
    "no such version": Bad(
        edited(lambda c: c["procserver"].update(model_version="77x")), "77x"
    ),
    "another name": Bad(
        edited(lambda c: c["metadata"].update(name="else")), "needs a restart"
    ),
    "another source": Bad(
        edited(lambda c: c["model_config"].update(url="more.parquet")),
        "another item source",
    ),
    "no model": Bad(edited(lambda c: c.update(model_path="nowhere")), "does not exist"),
}


@contextmanager
def offered(service: Service, kind: str):  # type: ignore[no-untyped-def]
    """A service whose next reload is to be refused, for the reason that is given."""
    bad = BAD[kind]
    mend = bad.spoil(service)
    try:
        yield bad.reason
    finally:
        mend()
