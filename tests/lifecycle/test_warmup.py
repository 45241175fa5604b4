"""Warm-up: how often the model is called, and what files may do about it."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

import pytest
from counting import (
    FG,
    Counting,
    Demanding,
    Positional,
    Slow,
    load,
    request,
    write,
)

from procserver.app import Service
from procserver.config import ServiceConfig
from procserver.errors import ModelError
from procserver.lifecycle.recordings import Limits as RecordingLimits
from procserver.lifecycle.recordings import Recording, from_base64, recordings
from procserver.lifecycle.service import build_service
from procserver.model.loading import load as load_model
from procserver.model.package import open_served
from procserver.observe.metrics import REGISTRY, WARM_UP, WARM_UP_FILES
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

# The runner silences it in a process of its own; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")

SYNTHESIZED = 6  # two for each of three shapes


def build(service: ServiceConfig) -> Service:
    package = open_served(service)
    return build_service(
        service, package, None, "cpu", lambda package, device: load_model(package)
    )


def calls_before(service: Service) -> int:
    """How often the model had been called before this."""
    reply = PBResponse.FromString(service.pipeline.predict(request()).body)
    (score, _) = reply.map_outputs["calls"].float_val
    return int(score) - 1


def count(counter, outcome: str) -> int:
    """What a counter of this process has counted."""
    assert REGISTRY.block is not None
    return sum(
        counter.read(REGISTRY.block, row, outcome) for row in range(REGISTRY.block.rows)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "captures"
    found.mkdir()
    return found


def replaying(tmp_path: Path, folder: Path, **changes: object) -> ServiceConfig:
    """A service that replays a folder, three times each file."""
    path = write(
        tmp_path / "service",
        "replaying",
        model_config={
            "warmup_data_path": str(folder),
            "warmup_cnt_per_file": 3,
            **changes.pop("model_config", {}),  # type: ignore[dict-item]
        },
        **changes,
    )
    return load(path)


def test_two_requests_for_each_shape(tmp_path: Path) -> None:
    before = count(WARM_UP, "synthesized")
    service = build(load(write(tmp_path, "plain")))
    assert calls_before(service) == SYNTHESIZED
    assert count(WARM_UP, "synthesized") - before == SYNTHESIZED


def test_an_empty_item_list_does_not_reach_the_model(tmp_path: Path) -> None:
    service = build(load(write(tmp_path, "nobody")))
    message = PBRequest()
    message.user_features["user_id"].string_feature = "u"
    reply = service.pipeline.predict(message.SerializeToString())
    output = PBResponse.FromString(reply.body).map_outputs["calls"]
    assert list(output.array_shape.dim) == [0]
    assert calls_before(service) == SYNTHESIZED
    (described,) = service.pipeline.describe()["outputs"]
    assert described["name"] == "calls"


def test_an_item_tower_needs_no_item_ids(tmp_path: Path) -> None:
    tower = {"features": FG["features"][1:]}
    service = build(load(write(tmp_path, "tower", fg=tower)))
    message = PBRequest()
    message.item_features["price"].features.add().float_feature = 2
    reply = PBResponse.FromString(
        service.pipeline.predict(message.SerializeToString()).body
    )
    assert list(reply.map_outputs["calls"].float_val) == [SYNTHESIZED + 1]


def test_a_folder_is_replayed(tmp_path: Path, folder: Path) -> None:
    for i in range(4):
        (folder / f"warmup_{i:03}.pb").write_bytes(request(f"u{i}"))
    before = count(WARM_UP_FILES, "replayed"), count(WARM_UP, "replayed")
    service = build(replaying(tmp_path, folder))
    assert calls_before(service) == SYNTHESIZED + 4 * 3
    assert count(WARM_UP_FILES, "replayed") - before[0] == 4
    assert count(WARM_UP, "replayed") - before[1] == 12


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_few_rounds(tmp_path: Path, folder: Path, rounds: int) -> None:
    (folder / "a.pb").write_bytes(request())
    service = replaying(tmp_path, folder, model_config={"warmup_cnt_per_file": rounds})
    assert calls_before(build(service)) == SYNTHESIZED + rounds


def test_captures_in_the_state_folder_are_replayed_too(
    tmp_path: Path, folder: Path
) -> None:
    service = replaying(tmp_path, folder)
    spare = service.state_dir / "warmup"
    spare.mkdir(parents=True)
    (spare / "warmup_000.pb").write_bytes(request())
    assert calls_before(build(service)) == SYNTHESIZED + 3


def test_useless_files_are_counted_and_passed_over(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside.pb"
    outside.write_bytes(request("outside"))
    inside = folder / "..data"
    inside.mkdir()
    (inside / "real.pb").write_bytes(request("inside"))
    (folder / "inside.pb").symlink_to("..data/real.pb")
    (folder / "good.pb").write_bytes(request("good"))
    (folder / "c1_garbage.pb").write_bytes(b"\xff" * 40)
    foreign = PredictRequest()
    foreign.inputs.add(dtype=1).float_val.append(1)
    (folder / "c2_foreign.pb").write_bytes(foreign.SerializeToString())
    (folder / "c3_empty.pb").write_bytes(b"")
    (folder / "c4_huge.pb").write_bytes(b"\xff" * 5000)
    (folder / "c5_large.pb").write_bytes(b"\xff" * 1500)
    (folder / "c6_linked.pb").symlink_to(outside)
    (folder / "c7_dangling.pb").symlink_to("nowhere.pb")
    os.mkfifo(folder / "c8_pipe.pb")
    (folder / "c9_readme.md").write_text("hello\n")
    (folder / "d_\x1b[31m\n.md").write_text("escape")
    (folder / ".warmup_001.tmp").write_bytes(request())
    before = count(WARM_UP_FILES, "skipped"), count(WARM_UP_FILES, "failed")
    service = replaying(tmp_path, folder, procserver={"max_body_bytes": 1024})
    with caplog.at_level(logging.INFO, "procserver"):
        assert calls_before(build(service)) == SYNTHESIZED + 2 * 3
    assert count(WARM_UP_FILES, "skipped") - before[0] == 7
    assert count(WARM_UP_FILES, "failed") - before[1] == 3
    said = caplog.text
    assert "c1_garbage.pb: undecodable" in said
    assert "c2_foreign.pb: " in said
    assert "c3_empty.pb: empty" in said
    assert "c4_huge.pb: 5000 bytes" in said
    assert "c5_large.pb: a body of over 1024 bytes" in said
    assert "c6_linked.pb: links to outside" in said
    assert "c7_dangling.pb: nothing there" in said
    assert "c8_pipe.pb: not a file" in said
    assert "c9_readme.md: neither .pb, .bin nor .txt" in said
    assert "\x1b" not in said
    assert "2 replayed, 7 skipped, 3 failed" in said


def test_ten_thousand_files_cost_no_more_than_the_cap(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(10_000):
        (folder / f"{i:05}.pb").touch()
    (folder / "00000.pb").write_bytes(request())
    service = replaying(tmp_path, folder, model_config={"warmup_pb_files_count": 5})
    before = count(WARM_UP_FILES, "skipped")
    assert calls_before(build(service)) == SYNTHESIZED + 3
    assert count(WARM_UP_FILES, "skipped") - before == 9_999
    told = [r for r in caplog.records if "warm-up" in r.getMessage()]
    assert len(told) <= 12
    assert "and 40 more like these" in caplog.text


def test_time_ends_the_replay_but_not_the_synthesis(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(30):
        (folder / f"{i}.pb").write_bytes(request())
    service = replaying(tmp_path, folder, procserver={"warmup_seconds": 0})
    assert calls_before(build(service)) == SYNTHESIZED
    assert "30 files left after 0 s" in caplog.text


def test_a_slow_file_is_left_for_the_next(tmp_path: Path, folder: Path) -> None:
    (folder / "a_slow.pb").write_bytes(request(prices=(777.0,)))
    (folder / "b_quick.pb").write_bytes(request())
    service = replaying(
        tmp_path,
        folder,
        module=Slow(),
        metadata={"rpc": {"keepalive": 1}},
        model_config={"warmup_cnt_per_file": 50},
    )
    calls = calls_before(build(service))
    # The slow file once; the quick one more than once, its own 2 ms permitting.
    assert SYNTHESIZED + 2 <= calls < SYNTHESIZED + 1 + 50


def test_when_every_file_fails_it_is_said_loudly(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(15):
        (folder / f"{i}.pb").write_bytes(b"\xff\xff")
    assert calls_before(build(replaying(tmp_path, folder))) == SYNTHESIZED
    (loud,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "NOT ONE recorded request of 15 files" in loud.getMessage()
    assert "and 5 more like these" in caplog.text


def test_eas_files_in_all_their_forms(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "raw.bin").write_bytes(request("raw"))
    (folder / "text.bin").write_bytes(base64.encodebytes(request("text" * 50)))
    lines = [base64.b64encode(request(f"line{i}")).decode() for i in range(3)]
    (folder / "lines.txt").write_text("\n\n".join([*lines, "{not base64}"]) + "\n")
    config = write(tmp_path / "service", "eas", warm_up_data_path=str(folder))
    assert calls_before(build(load(config))) == SYNTHESIZED + 5 * (1 + 1 + 3)


def test_an_eas_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "warm.bin"
    file.write_bytes(request())
    config = write(tmp_path / "service", "single", warm_up_data_path=str(file))
    assert calls_before(build(load(config))) == SYNTHESIZED + 5


def test_an_eas_file_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write(tmp_path / "service", "gone", warm_up_data_path="none.bin")
    assert calls_before(build(load(config))) == SYNTHESIZED
    assert "none.bin: nothing there" in caplog.text
    assert any(r.levelno == logging.ERROR for r in caplog.records)


def test_a_model_that_fails_on_everything_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "service", "demanding", module=Demanding())
    with pytest.raises(ModelError, match=r"fg\.json"):
        build(load(config))


def test_recorded_requests_excuse_synthesized_ones(
    tmp_path: Path, folder: Path
) -> None:
    (folder / "real.pb").write_bytes(request(prices=(5000.0, 1.0)))
    service = replaying(tmp_path, folder, module=Demanding())
    reply = build(service).pipeline.predict(request(prices=(2000.0,)))
    output = PBResponse.FromString(reply.body).map_outputs["price"]
    assert list(output.float_val) == [2000.0]


def test_tensors_for_bypass_are_made_up_from_fg_json(tmp_path: Path) -> None:
    config = write(tmp_path, "bypass", model_config={"fg_mode": "bypass"})
    service = build(load(config))
    message = PredictRequest()
    tensor = message.map_inputs["price.values"]
    tensor.dtype = 1
    tensor.array_shape.dim.extend((1, 1))
    tensor.float_val.append(1)
    reply = service.pipeline.predict(message.SerializeToString())
    outputs = PredictResponse.FromString(reply.body).map_outputs
    assert list(outputs["calls"].float_val) == [SYNTHESIZED + 1]


def test_a_bypass_model_may_be_unlike_its_fg_json(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        "unlike",
        module=Demanding(),
        model_config={"fg_mode": "bypass"},
    )
    assert build(load(config)).name == "unlike"


@pytest.mark.parametrize(
    ("module", "fg", "reason"),
    [
        (Positional(), FG, "positional"),
        (Counting(), None, "no fg.json"),
        (Counting(), {"features": [{"feature_type": "odd"}]}, "feature_name"),
    ],
)
def test_nothing_is_tried_where_nothing_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module, fg, reason: str
) -> None:
    config = write(
        tmp_path, "bare", module=module, fg=fg, model_config={"fg_mode": "bypass"}
    )
    before = count(WARM_UP, "synthesized"), count(WARM_UP, "failed")
    with caplog.at_level(logging.INFO, "procserver"):
        build(load(config))
    (line,) = [r for r in caplog.records if "nothing is known" in r.getMessage()]
    assert reason in line.getMessage()
    after = count(WARM_UP, "synthesized"), count(WARM_UP, "failed")
    assert after == before


def test_a_crash_in_a_recorded_request_is_a_failed_file(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.pb").write_bytes(request("crash"))
    (folder / "b.pb").write_bytes(request("fine"))
    from procserver import pipeline

    decode = pipeline.torchrec_wire.decode

    def crashing(body: bytes):
        if b"crash" in bytes(body):
            raise RuntimeError("a bug")
        return decode(body)

    monkeypatch.setattr(pipeline.torchrec_wire, "decode", crashing)
    before = count(WARM_UP_FILES, "failed")
    assert calls_before(build(replaying(tmp_path, folder))) == SYNTHESIZED + 3
    assert count(WARM_UP_FILES, "failed") - before == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"aGVsbG8=", b"hello"),
        (b"aGVs\nbG8=\n", b"hello"),
        (b" \n", None),
        (b"", None),
        (b"aGVsbG8", None),
        (b"{}", None),
        (b"\x08\x01", None),
    ],
)
def test_what_counts_as_base64(content: bytes, expected: bytes | None) -> None:
    assert from_base64(content) == expected


def test_lines_that_never_end(tmp_path: Path) -> None:
    file = tmp_path / "endless.txt"
    file.write_bytes(b"A" * 10_000)
    (found,) = recordings(tmp_path, RecordingLimits(10, 1000))
    assert isinstance(found, Recording)
    ((_, problem),) = found.bodies()
    assert problem is not None
    assert "over 2000 bytes" in problem
