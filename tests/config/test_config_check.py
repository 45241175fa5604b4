"""``procserver check``: what it prints, what it refuses, its exit status."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procserver import cli
from procserver.config.check import check
from procserver.model.inspection import inspect

EXAMPLES = sorted(
    (Path(__file__).resolve().parents[2] / "conf" / "examples").glob("*.json")
)
CANARY = "c4n4ry"


def run(path: Path, environ: dict[str, str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = check(path, environ, out, err, inspect)
    return status, out.getvalue(), err.getvalue()


def write(folder: Path, document: dict[str, Any]) -> Path:
    file = folder / "service.json"
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize("name", ["torcheasyrec_with_fg", "torcheasyrec_no_fg"])
def test_vendor_examples_pass_once_mapped(
    name: str, data: Path, environ: dict[str, str]
) -> None:
    status, out, err = run(data / f"{name}.json", environ)
    assert (status, err) == (0, "")
    assert out.startswith(f"service alirec_rank_{name.removeprefix('torcheasyrec_')}\n")
    assert "scripted_model.pt, fg.json, model_acc.json" in out
    assert "YOUR_ACCESS_KEY" not in out


def test_vendor_example_passes_with_a_local_path(
    data: Path, tmp_path: Path, export: Callable[..., Path]
) -> None:
    document = json.loads((data / "torcheasyrec_with_fg.json").read_text())
    document["storage"][0]["local"] = {"path": "mine"}
    export(tmp_path / "mine")
    environ = {"HOME": "/h", "PROCSERVER_ROOT": str(tmp_path / "no")}
    status, out, _ = run(write(tmp_path, document), environ)
    assert status == 0
    assert str(tmp_path / "mine") in out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_passes(
    example: Path,
    tmp_path: Path,
    environ: dict[str, str],
    export: Callable[..., Path],
) -> None:
    folder = tmp_path / "service"
    export(folder / "export")
    export(folder / "export" / "user")
    (folder / "items").mkdir()
    (folder / "items" / "part-0.parquet").write_bytes(b"PAR1")
    file = folder / example.name
    file.write_text(example.read_text())
    status, out, err = run(file, environ)
    assert (status, err) == (0, "")
    assert "unknown key" not in out
    assert "not JSON" not in out


def test_examples_cover_the_styles() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "with_fg",
        "without_fg",
        "parquet_items",
        "postgres_items",
        "redis_stream",
        "object_store",
        "gpu",
        "recall",
        "warmup_and_logging",
    }


def test_problems_go_to_the_second_stream(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    file = write(tmp_path, {"name": "s", "rpc.worker_threads": "many"})
    status, out, err = run(file, environ)
    assert (status, out) == (2, "")
    assert err.splitlines()[0] == "2 problems:"
    assert 'worker_threads: expected an integer, got "many"' in err
    assert "  processor: missing;" in err


def test_warnings_stand_beside_problems(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    file = write(tmp_path, {"name": "s", "procesor": "easyrec-torch-1.12"})
    status, _, err = run(file, environ)
    assert status == 2
    assert "processor: missing" in err
    assert "procesor: unknown key, did you mean processor?" in err


def test_keys_that_utf8_cannot_hold(
    tmp_path: Path, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    file = write(tmp_path, minimal | {"\ud800x": 1})
    status, out, _ = run(file, environ)
    assert status == 0
    assert "\\ud800x: unknown key" in out.encode().decode()


def test_missing_warm_up_data(
    tmp_path: Path, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    file = write(tmp_path, minimal | {"warm_up_data_path": "w.bin"})
    status, _, err = run(file, environ)
    assert status == 2
    assert f"warm_up_data_path: nothing at {tmp_path / 'w.bin'}" in err
    (tmp_path / "w.bin").write_bytes(b"")
    assert run(file, environ)[0] == 0


def test_secrets_are_masked(
    tmp_path: Path, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {
        "token": CANARY,
        "model_config": {
            "fg_mode": "normal",
            "remote_type": "hologres",
            "url": f"postgresql://a:{CANARY}@h/d",
            "tables": {"name": "t", "key": "k"},
            "access_key_id": CANARY,
            "access_key_secret": CANARY,
            "security_token": CANARY,
            "featuredb_password": CANARY,
        },
        "storage": [{"mount_path": "/m", "oss": {"path": f"oss://a:{CANARY}@b/c"}}],
        "processor_envs": {"MY_TOKEN": CANARY},
    }
    status, out, err = run(write(tmp_path, document), environ)
    assert (status, err) == (0, "")
    assert CANARY not in out
    assert "postgresql://***@h/d" in out
    assert "oss://***@b/c" in out


def test_the_report_shows_given_values_and_defaults(
    tmp_path: Path, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"rpc.worker_threads": "16", "zzz": 1}
    _, out, _ = run(write(tmp_path, document), environ)
    lines = [line.split() for line in out.splitlines()]
    assert ["worker_threads", "16", "requests"] in lines
    assert ["max_queue_size", "64", "requests", "[default]"] in lines
    assert ["zzz:", "unknown", "key"] in lines


def test_missing_local_items(
    tmp_path: Path, minimal: dict[str, Any], export: Callable[..., Path]
) -> None:
    export(tmp_path / "m")
    items = {"fg_mode": "normal", "remote_type": "parquet", "url": "items"}
    tables = [{"name": "a", "key": "id"}, {"name": "b/*.parquet", "key": "id"}]
    document = minimal | {"model_path": "m", "model_config": items | {"tables": tables}}
    (tmp_path / "items" / "b").mkdir(parents=True)
    (tmp_path / "items" / "b" / "x.parquet").write_bytes(b"PAR1")
    status, _, err = run(write(tmp_path, document), {"HOME": "/h"})
    assert status == 2
    assert err.splitlines()[1:] == [
        f"  model_config.url: no items at {tmp_path / 'items' / 'a'}"
    ]


def test_databases_and_streams(
    tmp_path: Path, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {
        "model_config": {
            "fg_mode": "normal",
            "remote_type": "postgres",
            "url": f"host=h user=u password={CANARY}",
            "tables": {"name": "t", "key": "k"},
            "stream": {"url": f"redis://:{CANARY}@h/0", "key": "changes"},
        },
    }
    status, out, err = run(write(tmp_path, document), environ)
    assert (status, err) == (0, "")
    assert CANARY not in out
    assert "host=h user=u password=***" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["model_config.stream"] in lines
    assert ["url", "redis://***@h/0"] in lines
    assert ["key", "changes"] in lines


def test_the_command(
    data: Path,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["check", str(data / "torcheasyrec_no_fg.json")]) == 0
    assert "service alirec_rank_no_fg" in capsys.readouterr().out
    assert cli.main(["check", str(data / "missing.json")]) == 2
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_every_command_has_a_help_text() -> None:
    for command in cli.COMMANDS:
        assert command.__doc__
        assert command.__name__ in cli.parser().format_help()


def test_the_process(data: Path, environ: dict[str, str]) -> None:
    """Exit status of the real command, and that it waits for no heavy import."""
    code = (
        "import sys; from procserver.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'pyarrow', 'numpy', 'falcon'} & set(sys.modules);"
        "rooms = [m for m in sys.modules if m.startswith('procserver.')"
        " and m.split('.')[1] not in"
        " ('config', 'errors', 'cli', 'demo', 'offline', 'model', 'replay',"
        " 'lifecycle')];"
        "print(heavy, rooms, file=sys.stderr); sys.exit(status)"
    )
    file = str(data / "torcheasyrec_with_fg.json")
    done = subprocess.run(
        [sys.executable, "-c", code, "check", file],
        env=environ | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "set() []"


def test_a_reader_that_leaves_early(data: Path, environ: dict[str, str]) -> None:
    file = str(data / "torcheasyrec_with_fg.json")
    done = subprocess.run(
        f"{sys.executable} -m procserver check {file} | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        env=environ | {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
