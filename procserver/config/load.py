"""Service JSON and environment to one :class:`ServiceConfig`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from procserver.config.envs import read_envs
from procserver.config.host import HostConfig
from procserver.config.kinds import Wrong
from procserver.config.known import (
    aliases,
    all_settings,
    check_keys,
    ignored_places,
)
from procserver.config.model import MODEL_FOLDER, ModelConfig
from procserver.config.platform import notice
from procserver.config.reader import Pairs, canonical, read_text
from procserver.config.rpc import EasConfig, RpcConfig
from procserver.config.secret import Url, url_scheme
from procserver.config.service import ServiceConfig, engine_of
from procserver.config.settings import lookup, read_section
from procserver.config.source import SourceConfig, read_source
from procserver.config.storage import (
    Mount,
    Places,
    local_path,
    read_storage,
    refuse_archive,
)
from procserver.errors import ConfigError

#: URLs that end so name one file; others are folders.
_FILES = (".pt", ".pth", ".bin", ".pb", ".txt")


@dataclass(frozen=True)
class Loaded:
    """A service and what its operator should know."""

    service: ServiceConfig
    notices: list[str]
    warnings: list[str]


def load(
    path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ
) -> Loaded:
    """Reads a service JSON file.

    Args:
        path: the file; relative paths inside it are relative to its folder.
        environ: ``PROCSERVER_ROOT``, ``PROCSERVER_STATE``, ``XDG_STATE_HOME``,
            ``HOME`` and the vendor's variables, which ``processor_envs`` override.

    Raises:
        ConfigError: with every problem found.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: not UTF-8 at byte {error.start}"]) from None
    return load_text(text, file.resolve().parent, environ)


def load_text(
    text: str,
    base: str | os.PathLike[str] = ".",
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Like :func:`load`, for JSON text; ``base`` stands for the file's folder."""
    document, warnings = read_text(text)
    loaded = parse(document, base, environ)
    return replace(loaded, warnings=[*warnings, *loaded.warnings])


def parse(
    document: Mapping[str, Any] | Pairs,
    base: str | os.PathLike[str] = ".",
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Like :func:`load`, for a parsed document."""
    return _Parser(document, Path(base).resolve(), environ).run()


class _Parser:
    """Collects problems over all sections before it gives up."""

    def __init__(
        self,
        document: Mapping[str, Any] | Pairs,
        base: Path,
        environ: Mapping[str, str],
    ) -> None:
        found = canonical(
            document,
            aliases(),
            ignored=ignored_places(),
            opaque=[("processor_envs",), ("procserver", "pass_through_data")],
            embedded=[("model_config",)],
        )
        self.tree = found.tree
        self.problems = found.problems
        self.warnings = found.warnings
        self.notices = [notice(".".join(place)) for place in found.ignored]
        self.base = base
        self.environ = environ
        self.copies: list[Mount] = []

    def run(self) -> Loaded:
        check_keys(self.tree, self.problems, self.warnings)
        service = read_section(ServiceConfig, self.tree, self.problems)
        rpc = read_section(RpcConfig, self.tree, self.problems)
        eas = read_section(EasConfig, self.tree, self.problems)
        model = read_section(ModelConfig, self.tree, self.problems)
        host = read_section(HostConfig, self.tree, self.problems)
        source = read_source(self.tree, self.problems, self.warnings)
        envs = read_envs(
            self.tree.get("processor_envs"), self.environ, self.problems, self.warnings
        )
        root = Path(self.environ.get("PROCSERVER_ROOT") or "/").absolute()
        mounts = read_storage(
            self.tree.get("storage"), self.base, root, self.problems, self.warnings
        )
        if service["oss_endpoint"]:
            mounts = tuple(
                replace(mount, endpoint=mount.endpoint or service["oss_endpoint"])
                for mount in mounts
            )
        # NOTE: without a name there is a problem already; the state folder
        # only has to be some path then.
        state = self.state_dir(service["name"] or "unnamed", host["state_dir"])
        places = Places(self.base, state, mounts)
        model_dir = self.model_dir(model, places, service["oss_endpoint"], root)
        self.paths(service, model, source, places)
        if host["hot_export"] is not None:
            host["hot_export"] = self.hot_export(host["hot_export"], places)
        if host["access_log"] not in (None, "-"):
            host["access_log"] = str(local_path(self.base, host["access_log"]))
        self.contradictions(service, rpc, model, source)
        self.drain(host["drain_seconds"], eas["termination_grace_period_s"])
        self.pending()
        if self.problems:
            error = ConfigError(list(dict.fromkeys(self.problems)))
            # An unknown key is often why another one is missing.
            for warning in dict.fromkeys(self.warnings):
                error.add_note(warning)
            raise error
        return Loaded(
            ServiceConfig(
                **service,
                engine=engine_of(service["processor"]),
                rpc=RpcConfig(**rpc),
                model=ModelConfig(**model),
                source=SourceConfig(**source) if source else None,
                envs=envs,
                storage=mounts,
                copies=tuple(dict.fromkeys(self.copies)),
                model_dir=model_dir,
                state_dir=state,
                eas=EasConfig(**eas),
                host=HostConfig(**host),
            ),
            self.notices,
            list(dict.fromkeys(self.warnings)),
        )

    def state_dir(self, name: str, given: str | None) -> Path:
        if given:
            return local_path(self.base, given)
        if self.environ.get("PROCSERVER_STATE"):
            return Path(self.environ["PROCSERVER_STATE"]).absolute()
        home = Path(self.environ.get("HOME") or Path.home())
        states = self.environ.get("XDG_STATE_HOME") or home / ".local" / "state"
        return Path(states).absolute() / "procserver" / name

    def model_dir(
        self, model: dict[str, Any], places: Places, endpoint: str | None, root: Path
    ) -> Path:
        """The export: ``model_path``, else what is mounted at the vendor's place."""
        given: Url | None = model["model_path"]
        mount = places.mount_of(MODEL_FOLDER)
        if given is not None:
            try:
                refuse_archive(given)
            except Wrong as wrong:
                self.problems.append(f"model_path: expected {wrong}")
            if mount is not None:
                self.warnings.append(
                    f"model_path: used instead of the storage entry for {MODEL_FOLDER}"
                )
            folder = self.fetched(given, "model_path", places, endpoint)
        else:
            folder = places.path(MODEL_FOLDER)
            if mount is None:
                folder = root / MODEL_FOLDER.strip("/")
                if not folder.exists():
                    self.problems.append(
                        "storage: no model; give model_path, or an entry with "
                        f'"mount_path": "{MODEL_FOLDER}"'
                    )
            else:
                self.need(mount)
        entry = model["model_entry"]
        if entry and (Path(entry).is_absolute() or ".." in Path(entry).parts):
            self.problems.append("model_entry: expected a path below model_path")
        return folder

    def hot_export(self, given: str, places: Places) -> Path:
        """The folder that a trainer publishes to; it must not be a copy."""
        mount = places.mount_of(given)
        if mount is not None and mount.local is None and mount.remote is not None:
            self.problems.append(
                f"procserver.hot_export: {mount.mount_path} would be copied once, at "
                "the start; mount what the trainer publishes to"
            )
        return places.path(given)

    def fetched(self, url: Url, key: str, places: Places, endpoint: str | None) -> Path:
        """The local path of a path or URL; a URL is copied at start."""
        if not url.scheme:
            mount = places.mount_of(url.reveal())
            if mount is not None:
                self.need(mount)
            return places.path(url.reveal())
        copy = Mount(key, None, url, True, endpoint)
        self.copies.append(copy)
        name = url.reveal().rstrip("/").rpartition("/")[2].partition("?")[0]
        folder = copy.folder(places.state_dir)
        # A file is copied into the folder under its own name.
        return folder / name if name.endswith(_FILES) else folder

    def need(self, mount: Mount) -> None:
        if mount.local is None:
            self.copies.append(mount)

    def paths(
        self,
        service: dict[str, Any],
        model: dict[str, Any],
        source: dict[str, Any] | None,
        places: Places,
    ) -> None:
        for key in ("warmup_data_path", "request_log_path"):
            if model[key] is None:
                continue
            mount = places.mount_of(model[key])
            if mount is not None and mount.local is None and mount.remote is not None:
                self.warnings.append(
                    f"model_config.{key}: {mount.mount_path} is not mounted here; what "
                    f"is written stays in the state folder, not in {mount.remote}"
                )
                if key == "warmup_data_path":
                    self.need(mount)
            model[key] = places.path(model[key])
        if service["warm_up_data_path"] is not None:
            service["warm_up_data_path"] = self.fetched(
                service["warm_up_data_path"],
                "warm_up_data_path",
                places,
                service["oss_endpoint"],
            )
        if source is not None and source["url"] is not None:
            is_path = source["remote_type"] in ("parquet", "feast")
            if is_path and not url_scheme(source["url"].reveal()):
                mount = places.mount_of(source["url"].reveal())
                if mount is not None:
                    self.need(mount)
                source["url"] = places.url(source["url"])
        stream = source["stream"] if source is not None else None
        if source and stream and stream.url and not stream.url.scheme:
            path = places.path(stream.url.reveal())
            source["stream"] = replace(stream, url=Url(path.as_uri()))

    def contradictions(
        self,
        service: dict[str, Any],
        rpc: dict[str, Any],
        model: dict[str, Any],
        source: dict[str, Any] | None,
    ) -> None:
        torch = engine_of(service["processor"] or "easyrec-torch") == "torch"
        mode = model["fg_mode"]
        if torch and mode == "tf":
            self.problems.append(
                f'model_config.fg_mode: "tf" contradicts processor '
                f'"{service["processor"]}"; its word is "normal"'
            )
        if not torch:
            self.warnings.append(
                f"processor: {service['processor']} needs the TensorFlow engine, "
                "which is not available yet: the service will not start"
            )
        if not rpc["batching"]:
            self.warnings.extend(
                f"metadata.rpc.{key}: has no effect without batching"
                for key in ("max_batch_size", "max_batch_timeout")
                if lookup(self.tree, f"metadata.rpc.{key}") is not None
            )
        kind = source["remote_type"] if source else None
        if mode == "bypass" and kind not in (None, "none"):
            self.warnings.append(
                f'model_config.remote_type: {kind} is not used in fg_mode "bypass"'
            )
        if mode != "bypass" and kind is None:
            self.warnings.append(
                "model_config.remote_type: no item source; item features must come "
                "in each request's item_features"
            )
        if service["token"] is None:
            self.notices.append(
                "token: none given, every client is answered and debug levels are "
                "off unless procserver.allow_debug is true"
            )

    def drain(self, window: float | None, grace: float) -> None:
        if window and window >= grace:
            self.problems.append(
                f"procserver.drain_seconds: {window:g} s leave no time to finish "
                "requests within metadata.eas.termination_grace_period "
                f"({grace:g} s)"
            )

    def pending(self) -> None:
        """One warning for all keys that are given but do nothing yet."""
        given = [
            declared.path
            for _, _, declared in all_settings()
            if declared.pending and lookup(self.tree, declared.path) is not None
        ]
        if given:
            self.warnings.append(
                f"accepted, but without effect in this version: {', '.join(given)}"
            )
