"""The service JSON as a whole: vendor pages, aliases, contradictions, paths."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver import config
from procserver.config.known import all_settings
from procserver.errors import ConfigError

CANARY = "c4n4ry"


def problems(document: dict[str, Any], environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(document, "/srv/conf", environ)
    return caught.value.problems


def test_vendor_example_with_fg(
    data: Path, root: Path, environ: dict[str, str]
) -> None:
    loaded = config.load(data / "torcheasyrec_with_fg.json", environ)
    service = loaded.service
    assert service.name == "alirec_rank_with_fg"
    assert (service.processor, service.engine) == ("easyrec-torch-1.12", "torch")
    assert service.rpc.worker_threads == 16
    assert service.rpc.max_queue_size == 256
    assert service.rpc.enable_jemalloc is True
    assert (service.model.fg_mode, service.model.fg_threads) == ("normal", 8)
    assert service.model_dir == root / "home/admin/docker_ml/workspace/model"
    assert service.copies == ()
    assert service.source is not None
    assert service.source.remote_type == "featurestore"
    assert service.source.fs_entity == ("item",)
    assert service.source.load_feature_from_offlinestore is True
    assert service.source.access_key_secret == config.Secret("YOUR_ACCESS_KEY_SECRET")
    assert service.item_source is None
    assert any('remote_type": "parquet' in line for line in loaded.warnings)
    assert any(line.startswith("metadata.instance:") for line in loaded.notices)
    assert any(line.startswith("cloud:") for line in loaded.notices)


def test_vendor_example_without_fg(
    data: Path, root: Path, environ: dict[str, str]
) -> None:
    service = config.load(data / "torcheasyrec_no_fg.json", environ).service
    assert service.model.fg_mode == "bypass"
    assert service.source is None
    assert service.storage[0].read_only is False


def test_vendor_tensorflow_examples(data: Path, environ: dict[str, str]) -> None:
    """The page's text has one quote too many; the rest is read."""
    for name in ("easyrec_with_fg.json", "easyrec_no_fg.json"):
        with pytest.raises(ConfigError, match=r"^line 12, column 38: not JSON"):
            config.load(data / name, environ)
        text = (data / name).read_text().replace('large""', 'large"')
        loaded = config.load_text(text, data, environ)
        assert loaded.service.engine == "tensorflow"
        assert any("TensorFlow engine" in line for line in loaded.warnings)
    with_fg = (data / "easyrec_with_fg.json").read_text().replace('large""', 'large"')
    source = config.load_text(with_fg, data, environ).service.source
    assert source is not None
    assert source.remote_type == "hologres"
    assert source.period_minutes == 2880
    assert source.tables[0].key == "<index_column_name>"
    assert source.url is not None
    assert "AccessKeySecret" not in str(source.url)


def test_all_defaults(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    service = config.parse(minimal, "/srv", environ).service
    rpc = service.rpc
    assert (rpc.worker_threads, rpc.max_queue_size, rpc.io_threads) == (5, 64, 4)
    assert (rpc.max_batch_size, rpc.max_batch_timeout_ms) == (16, 50)
    assert (rpc.batching, rpc.enable_jemalloc, rpc.rate_limit) == (False, False, 0)
    model = service.model
    assert (model.fg_mode, model.fg_threads, model.outputs) == ("bypass", 1, ())
    assert (model.item_empty_score, model.faiss_nprobe) == (0.0, 800)
    assert model.long_request_threshold_ms == 200
    assert service.host == config.HostConfig()
    assert service.host.max_body_bytes == 64 * 1024 * 1024
    assert service.host.max_items == 5000
    assert service.eas.termination_grace_period_s == 30
    assert service.allow_debug is False
    assert service.token is None


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"rpc": {"worker_threads": 9}}},
        {"metadata": {"rpc.worker_threads": "9"}},
        {"metadata.rpc.worker_threads": 9.0},
        {"metadata.rpc": {"worker_threads": 9}},
        {"rpc": {"worker_threads": 9}},
        {"rpc.worker_threads": 9},
        {"metadata": {"workers": 9}},
        {"metadata.workers": 9, "rpc.worker_threads": "9"},
    ],
)
def test_spellings_of_one_key(
    document: dict[str, Any], minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = config.parse(minimal | document, "/srv", environ)
    assert loaded.service.rpc.worker_threads == 9
    assert loaded.warnings == []


@pytest.mark.parametrize(
    "document",
    [{"token": "t"}, {"credential": {"token": "t"}}, {"credential.token": "t"}],
)
def test_token_aliases(
    document: dict[str, Any], minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    service = config.parse(minimal | document, "/srv", environ).service
    assert service.token == config.Secret("t")
    assert service.allow_debug is True


def test_name_aliases_must_agree(environ: dict[str, str]) -> None:
    document = {
        "name": "a",
        "metadata": {"name": "b"},
        "processor": "easyrec-torch-2.2",
    }
    assert problems(document, environ)[0].startswith(
        "metadata.name: given twice with different values"
    )


def test_featuredb_password_in_both_spellings(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    for key in ("featuredb_password", "featuredb_passwd"):
        document = minimal | {"model_config": {"fs_project": "p", key: CANARY}}
        source = config.parse(document, "/srv", environ).service.source
        assert source is not None
        assert source.featuredb_password == config.Secret(CANARY)
    both = {"fs_project": "p", "featuredb_password": "a", "featuredb_passwd": "b"}
    assert problems(minimal | {"model_config": both}, environ)


def test_model_config_as_text(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    inner = {"fg_mode": "normal", "remote_type": "none", "fg_threads": "3"}
    document = minimal | {"model_config": json.dumps(inner)}
    model = config.parse(document, "/srv", environ).service.model
    assert (model.fg_mode, model.fg_threads) == ("normal", 3)


def test_every_problem_is_collected(environ: dict[str, str]) -> None:
    document = {
        "metadata": {"rpc": {"worker_threads": 0, "batching": "perhaps"}},
        "model_config": {
            "fg_threads": "many",
            "fg_mode": "fast",
            "item_empty_score": [],
        },
        "processor": "tensorflow_cpu_1.12",
        "storage": {"mount_path": "relative"},
        "procserver": {"device": "tpu", "max_items": 0},
        "credential": CANARY,
    }
    found = problems(document, environ)
    for line in (
        "metadata.name: missing; Name of the service, in the URL "
        "`/api/predict/<name>`.",
        "metadata.rpc.worker_threads: expected an integer from 1 to 65536, got 0",
        'metadata.rpc.batching: expected true or false, got "perhaps"',
        'model_config.fg_threads: expected an integer, got "many"',
        'model_config.fg_mode: expected one of bypass, normal, tf, got "fast"',
        "model_config.item_empty_score: expected a number, got a list",
        "processor: expected easyrec-torch-VERSION or easyrec-VERSION, "
        'got "tensorflow_cpu_1.12"',
        'storage[0].mount_path: expected an absolute path, got "relative"',
        'procserver.device: expected "cpu", "cuda:N" or a list of "cuda:N", got "tpu"',
        "credential: expected an object, got a text",
    ):
        assert line in found
    assert CANARY not in "".join(found)


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"rpc.worker_thread": 1}, "did you mean metadata.rpc.worker_threads?"),
        ({"fg_mode": "normal"}, "did you mean model_config.fg_mode?"),
        ({"model_config": {"fgmode": 1}}, "did you mean model_config.fg_mode?"),
        ({"model_config": {"Outputs": 1}}, "did you mean model_config.outputs?"),
        ({"procserver": {"worker": 1}}, "did you mean procserver.workers?"),
        ({"zzzz": 1}, "zzzz: unknown key"),
    ],
)
def test_unknown_keys_name_the_nearest(
    document: dict[str, Any],
    hint: str,
    minimal: dict[str, Any],
    environ: dict[str, str],
) -> None:
    warnings = config.parse(minimal | document, "/srv", environ).warnings
    assert any("unknown key" in line and hint in line for line in warnings)


def test_platform_keys_give_notices_only(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {
        "metadata": {"instance": 2, "cpu": 4, "rpc": {"mirror": {"a": 1}}},
        "cloud.computing.instance_type": "ecs",
        "networking": {"gateway": "x"},
        "autoscaler": {},
        "containers": [{"image": "x"}],
        "labels": {"a": 1, "a.b": 2},
    }
    loaded = config.parse(document, "/srv", environ)
    assert loaded.warnings == []
    for key in ("metadata.instance", "metadata.cpu", "metadata.rpc.mirror", "cloud"):
        assert any(line.startswith(f"{key}: ignored") for line in loaded.notices)


def test_keys_without_effect_yet_are_said(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"model_config": {"faiss_nprobe": 10}, "rpc.io_threads": 5}
    warnings = config.parse(document, "/srv", environ).warnings
    assert warnings == [
        "accepted, but without effect in this version: metadata.rpc.io_threads, "
        "model_config.faiss_nprobe"
    ]


def test_tf_mode_contradicts_the_torch_processor(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"model_config": {"fg_mode": "tf"}}
    assert "contradicts processor" in problems(document, environ)[0]


def test_batch_keys_without_batching_warn(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"rpc": {"max_batch_size": 4}}
    warnings = config.parse(document, "/srv", environ).warnings
    assert "metadata.rpc.max_batch_size: has no effect without batching" in warnings


@pytest.mark.parametrize("name", ["a/b", "", "../x", "-x", "a" * 200, "a b"])
def test_names_that_do_not_fit_a_url_or_folder(
    name: str, environ: dict[str, str]
) -> None:
    found = problems({"name": name, "processor": "easyrec-torch"}, environ)
    assert found[0].startswith("metadata.name: ")


@pytest.mark.parametrize(
    ("processor", "engine"),
    [
        ("easyrec-torch-1.12", "torch"),
        ("easyrec-torch", "torch"),
        ("easyrec-2.4", "tensorflow"),
        ("easyrec-kv-1.8", "tensorflow"),
        ("easyrec", "tensorflow"),
    ],
)
def test_engines(processor: str, engine: str, environ: dict[str, str]) -> None:
    document = {"name": "s", "processor": processor}
    assert config.parse(document, "/srv", environ).service.engine == engine


def test_state_folder(
    minimal: dict[str, Any], environ: dict[str, str], tmp_path: Path
) -> None:
    def state(document: dict[str, Any], **more: str) -> Path:
        return config.parse(document, "/srv/c", environ | more).service.state_dir

    home = tmp_path / "home"
    assert state(minimal) == home / ".local/state/procserver/svc"
    assert state(minimal, XDG_STATE_HOME="/x") == Path("/x/procserver/svc")
    assert state(minimal, XDG_STATE_HOME="/x", PROCSERVER_STATE="/y") == Path("/y")
    document = minimal | {"procserver": {"state_dir": "s"}}
    assert state(document, PROCSERVER_STATE="/y") == Path("/srv/c/s")


def test_model_path_is_relative_to_the_file(
    minimal: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "conf" / "service.json"
    file.parent.mkdir()
    file.write_text(json.dumps(minimal | {"model_path": "export"}))
    service = config.load(file, {"HOME": "/h"}).service
    assert service.model_dir == file.parent.resolve() / "export"


def test_model_path_wins_over_storage_with_a_warning(
    data: Path, environ: dict[str, str]
) -> None:
    document = json.loads((data / "torcheasyrec_no_fg.json").read_text())
    loaded = config.parse(document | {"model_path": "export"}, "/srv", environ)
    assert loaded.service.model_dir == Path("/srv/export")
    assert any(line.startswith("model_path: used instead") for line in loaded.warnings)
    # The vendor's own example has an empty model_path, which counts as none.
    loaded = config.parse(document | {"model_path": ""}, "/srv", environ)
    assert loaded.service.model_dir != Path("/srv/export")


def test_model_url_is_copied(minimal: dict[str, Any]) -> None:
    environ = {"PROCSERVER_STATE": "/state"}
    folder = minimal | {"model_path": "s3://bucket/export/"}
    service = config.parse(folder, "/srv", environ).service
    assert service.model_dir == service.copies[0].folder(Path("/state"))
    file = minimal | {"model_path": "s3://bucket/m.pt"}
    service = config.parse(file, "/srv", environ).service
    assert service.model_dir == service.copies[0].folder(Path("/state")) / "m.pt"


@pytest.mark.parametrize("name", ["m.tar.gz", "m.zip", "m.tgz?sig=1"])
def test_packed_models_are_refused(name: str, minimal: dict[str, Any]) -> None:
    found = problems(minimal | {"model_path": f"https://host/{name}"}, {"HOME": "/h"})
    assert "unpack the archive first" in found[0]


def test_model_entry_stays_below_the_model(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"model_path": "export", "model_entry": "user"}
    service = config.parse(document, "/srv", environ).service
    # Between the two there may be a version.
    assert service.model_dir == Path("/srv/export")
    assert service.model.model_entry == "user"
    for entry in ("../x", "/etc"):
        assert problems(document | {"model_entry": entry}, environ)


def test_versions_and_hot_exports(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    host = config.parse(minimal, "/srv", environ).service.host
    assert (host.model_version, host.hot_export) == ("latest", None)
    document = minimal | {"procserver": {"model_version": 7, "hot_export": "hot"}}
    host = config.parse(document, "/srv", environ).service.host
    assert (host.model_version, host.hot_export) == ("7", Path("/srv/hot"))
    for name in ("../7", "a/b", ".hidden", "7.tmp", "7.tmp.31"):
        found = problems(minimal | {"procserver": {"model_version": name}}, environ)
        assert "the name of a version" in found[0]


def test_hot_exports_are_not_copied(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    mount = {"mount_path": "/hot", "oss": {"path": "oss://bucket/hot"}}
    document = minimal | {"storage": [mount], "procserver": {"hot_export": "/hot/x"}}
    found = problems(document, environ)
    assert any("procserver.hot_export: /hot would be copied once" in f for f in found)


def test_no_model_at_all(minimal: dict[str, Any], tmp_path: Path) -> None:
    environ = {"HOME": "/h", "PROCSERVER_ROOT": str(tmp_path)}
    assert problems(minimal, environ)[0].startswith("storage: no model;")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.json", {})
    (tmp_path / "bad.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(tmp_path / "bad.json", {})


def test_byte_order_mark(
    minimal: dict[str, Any], environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(minimal), encoding="utf-8-sig")
    assert config.load(tmp_path / "s.json", environ).service.name == "svc"


def test_the_tree_is_frozen_and_pickles(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    document = minimal | {"token": CANARY, "processor_envs": {"A": "1"}}
    service = config.parse(document, "/srv", environ).service
    with pytest.raises(dataclasses.FrozenInstanceError):
        service.rpc.worker_threads = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(service)) == service
    assert copy.deepcopy(service) == service


def test_no_secret_is_shown_anywhere(minimal: dict[str, Any]) -> None:
    document = minimal | {
        "token": f"token-{CANARY}",
        "model_path": f"s3://key:{CANARY}@bucket/export",
        "warm_up_data_path": f"https://u:{CANARY}@host/w.bin?sig={CANARY}",
        "model_config": {
            "fg_mode": "normal",
            "remote_type": "hologres",
            "url": f"postgresql://id:{CANARY}@host/db?password={CANARY}",
            "tables": {"name": "t", "key": "k"},
            "access_key_id": CANARY,
            "access_key_secret": CANARY,
            "security_token": CANARY,
            "featuredb_password": CANARY,
        },
        "storage": [
            {"mount_path": "/m", "oss": {"path": f"oss://id:{CANARY}@b/x"}},
        ],
        "processor_envs": [{"name": "AWS_SECRET_ACCESS_KEY", "value": CANARY}],
    }
    loaded = config.parse(document, "/srv", {"HOME": "/h"})
    shown = [repr(loaded), str(loaded), repr(dataclasses.asdict(loaded.service))]
    assert not any(CANARY in text for text in [*shown, *loaded.warnings])
    source = loaded.service.source
    assert source is not None
    assert source.url is not None
    assert CANARY in source.url.reveal()
    assert loaded.service.envs.raw["AWS_SECRET_ACCESS_KEY"] == CANARY


def test_wrong_values_of_secret_keys_are_not_shown(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    secret_paths = [
        declared.path
        for _, _, declared in all_settings()
        if declared.kind.secret and "[]" not in declared.path
    ]
    assert "credential.token" in secret_paths
    for path in secret_paths:
        found = problems(minimal | {path: [CANARY]}, environ)
        assert CANARY not in "".join(found), path


def _fold(node: Any, draw: Any) -> Any:
    """The same document with any number of levels folded into dotted keys."""
    if isinstance(node, list):
        return [_fold(element, draw) for element in node]
    if not isinstance(node, dict):
        return node
    folded: dict[str, Any] = {}
    for key, value in node.items():
        inner = _fold(value, draw)
        if isinstance(inner, dict) and inner and draw(st.booleans()):
            folded |= {f"{key}.{name}": leaf for name, leaf in inner.items()}
        else:
            folded[key] = inner
    return folded


@given(data=st.data())
def test_a_whole_service_reads_the_same_dotted(data: Any) -> None:
    path = Path(__file__).parents[1] / "data" / "config" / "torcheasyrec_with_fg.json"
    document = json.loads(path.read_text())
    document["model_config"] |= {
        "remote_type": "parquet",
        "url": "oss://b/items",
        "tables": [{"key": "id", "value": "a,b"}],
    }
    nested = config.parse(document, "/srv", {"HOME": "/h"})
    dotted = config.parse(_fold(document, data.draw), "/srv", {"HOME": "/h"})
    assert dotted.service == nested.service
    assert dotted.warnings == nested.warnings
    assert sorted(dotted.notices) == sorted(nested.notices)


PATHS = [
    declared.path
    for _, _, declared in all_settings()
    if "[]" not in declared.path and not declared.path.startswith("processor_envs")
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "key", "value", "mount_path", "oss", "path", "x.y"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(
    document=st.dictionaries(
        st.sampled_from([*PATHS, "storage", "processor_envs", "metadata", "rpc", "zz"]),
        VALUES,
        max_size=6,
    )
)
def test_any_document_loads_or_says_why(document: dict[str, Any]) -> None:
    found = None
    try:
        loaded = config.parse(document, "/srv", {"HOME": "/h"})
    except ConfigError as error:
        found = error.problems
    if found is None:
        assert loaded.service.name
    else:
        assert found
        assert all(isinstance(line, str) and line for line in found)


@pytest.mark.parametrize("path", ["/healthz", "/v2/health/ready", "/a/b-c.d"])
def test_health_check_paths(
    path: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    minimal["metadata.rpc.health_check_path"] = path
    loaded = config.parse(minimal, "/srv/conf", environ)
    assert loaded.service.rpc.health_check_path == path


@pytest.mark.parametrize(
    "path", ["/", "healthz", "/metrics", "/api/predict/x", "/v2/models/x", "/{x}"]
)
def test_health_check_paths_that_are_refused(
    path: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    minimal["metadata.rpc.health_check_path"] = path
    (problem,) = problems(minimal, environ)
    assert "metadata.rpc.health_check_path" in problem
    assert "none of the service's own" in problem


def test_the_drain_window_is_shorter_than_the_grace_period(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    host = config.parse(minimal, "/srv", environ).service.host
    assert host.drain_seconds is None
    document = minimal | {"procserver": {"drain_seconds": 30}}
    assert "procserver.drain_seconds: 30 s" in problems(document, environ)[0]
    document = minimal | {"procserver": {"drain_seconds": 29.5}}
    assert config.parse(document, "/srv", environ).service.host.drain_seconds == 29.5
    document = minimal | {"procserver": {"drain_seconds": 0}}
    assert config.parse(document, "/srv", environ).service.host.drain_seconds == 0


def test_the_access_log_lies_beside_the_service(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    for told, meant in (("a.log", "/srv/a.log"), ("-", "-"), ("", None)):
        document = minimal | {"procserver": {"access_log": told}}
        assert config.parse(document, "/srv", environ).service.host.access_log == meant
