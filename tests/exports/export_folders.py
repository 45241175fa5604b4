"""Export directories as the exporter writes them (files, names, absolute paths)."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.fx
from export_features import CITY_VOCABULARY
from torch import nn

# Where the exporter ran. Nothing of it exists where the model is served.
FOREIGN = "/mnt/data/experiments/4711/export"
ASSETS = {"city_vocab.txt": CITY_VOCABULARY.encode()}


def write_export(
    folder: Path,
    model: nn.Module,
    fg_json: Mapping[str, Any],
    *,
    tracer: torch.fx.Tracer | None = None,
    **acc: str,
) -> Path:
    """Traces, scripts and writes a model with all that belongs to it.

    :param acc: further keys of ``model_acc.json``
    """
    folder.mkdir(parents=True)
    model.eval()
    graph = (tracer or torch.fx.Tracer()).trace(model)
    traced = torch.fx.GraphModule(model, graph)
    (folder / "gm.code").write_text(traced.code)
    with warnings.catch_warnings():
        # About annotations in FX's own classes.
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        scripted = torch.jit.script(traced)
    scripted.save(str(folder / "scripted_model.pt"))
    written = _with_assets(folder, fg_json)
    (folder / "fg.json").write_text(
        json.dumps(written, ensure_ascii=False, indent=4), encoding="utf-8"
    )
    (folder / "model_acc.json").write_text(json.dumps({"SPARSE_INT64": "1", **acc}))
    (folder / "pipeline.config").write_text(_pipeline_config(fg_json))
    return folder


def _with_assets(folder: Path, fg_json: Mapping[str, Any]) -> dict[str, Any]:
    """Copies assets in, named by their content, and renames them in fg.json."""
    written: dict[str, Any] = copy.deepcopy(dict(fg_json))
    for feature in written["features"]:
        name = feature.get("vocab_file")
        if name is None:
            continue
        content = ASSETS[name]
        stem, _, ending = name.rpartition(".")
        copied = f"{stem}_{hashlib.md5(content).hexdigest()}.{ending}"
        (folder / copied).write_bytes(content)
        feature["vocab_file"] = copied
    return written


def _pipeline_config(fg_json: Mapping[str, Any]) -> str:
    names = [f.get("feature_name", f.get("sequence_name")) for f in fg_json["features"]]
    features = "".join(
        f'feature_configs {{ id_feature {{ feature_name: "{name}" }} }}\n'
        for name in names
    )
    return inspect.cleandoc(
        f"""
        model_dir: "{FOREIGN}/.."
        data_config {{
          dataset_type: OdpsDataset
          fg_mode: FG_DAG
        }}
        asset_dir: "{FOREIGN}"
        some_field_of_a_later_version: 1
        """
    ) + ("\n" + features)
