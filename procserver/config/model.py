"""``model_config``: feature generation, outputs, recall, warm-up and logging."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from procserver.config.kinds import (
    Boolean,
    Choice,
    Integer,
    Names,
    Number,
    Text,
    UrlText,
)
from procserver.config.secret import Url
from procserver.config.settings import setting

MODEL_FOLDER = "/home/admin/docker_ml/workspace/model/"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The processor's own settings; paths are resolved to this machine."""

    SECTION: ClassVar[str] = "model_config"

    fg_mode: str = setting(
        "fg_mode",
        Choice(("bypass", "normal", "tf")),
        "`bypass`: requests carry tensors. `normal`: requests carry features and "
        "ids, and features are generated here. `tf`: the TensorFlow processor's "
        "word for the latter.",
        default="bypass",
    )
    fg_threads: int = setting(
        "fg_threads",
        Integer(1, 1024),
        "Threads that generate the features of one request.",
        default=1,
        unit="threads",
    )
    outputs: tuple[str, ...] = setting(
        "outputs",
        Names(),
        "Outputs of the model to return. Empty: all.",
        default=(),
        shown_default="all",
    )
    item_empty_score: float = setting(
        "item_empty_score",
        Number(),
        "Score of an item id that the item cache does not hold.",
        default=0.0,
    )
    faiss_neigh_num: int = setting(
        "faiss_neigh_num",
        Integer(1, 1_000_000),
        "Items to recall where the request does not say.",
        default=1,
        unit="items",
        pending=True,
    )
    faiss_nprobe: int = setting(
        "faiss_nprobe",
        Integer(1, 10_000_000),
        "Clusters searched by vector recall.",
        default=800,
        unit="clusters",
        pending=True,
    )
    tdm_retrieval_num: int = setting(
        "tdm_retrieval_num",
        Integer(1, 1_000_000),
        "Items to recall from a TDM tree.",
        default=200,
        unit="items",
        pending=True,
    )
    warmup_data_path: Path | None = setting(
        "warmup_data_path",
        Text(name="path"),
        "Folder of captured requests: filled from live requests at the first start, "
        "replayed before a worker is ready at later ones. They hold features of "
        "people.",
    )
    warmup_cnt_per_file: int = setting(
        "warmup_cnt_per_file",
        Integer(0, 1_000_000),
        "How often each captured request is replayed.",
        default=20,
        unit="times",
    )
    warmup_pb_files_count: int = setting(
        "warmup_pb_files_count",
        Integer(0, 1_000_000),
        "Requests to capture for the next start, in the whole service. 0: none.",
        default=64,
        unit="files",
    )
    long_request_threshold_ms: float = setting(
        "long_request_threshold",
        Number(low=0),
        "A slower request is logged with the time of each stage.",
        default=200.0,
        unit="ms",
    )
    save_long_request: bool = setting(
        "save_long_request",
        Boolean(),
        "Save slow requests in `torch_req` in the model directory, or in the state "
        "directory where that cannot be written.",
        default=False,
    )
    save_req: bool = setting(
        "save_req",
        Boolean(),
        "Save requests for warm-up and tests (TensorFlow processor).",
        default=False,
        pending=True,
    )
    request_log_path: Path | None = setting(
        "request_log_path",
        Text(name="path"),
        "Folder for requests of debug level 100 and their features.",
        shown_default="`request_log` in the state directory",
    )
    background_feature_thread_num: int = setting(
        "background_feature_thread_num",
        Integer(1, 256),
        "Threads that write the request log, in the whole service.",
        default=4,
        unit="threads",
    )
    inter_op_parallelism_threads: int | None = setting(
        "inter_op_parallelism_threads",
        Integer(0, 1024),
        "Threads over operations that a model runs at the same time; no more than "
        "a worker's cores. 0: as many as these.",
        shown_default="the worker's cores",
        unit="threads",
    )
    intra_op_parallelism_threads: int | None = setting(
        "intra_op_parallelism_threads",
        Integer(0, 1024),
        "Threads inside an operation; no more than a worker's cores. 0: as many as "
        "these.",
        shown_default="the worker's cores",
        unit="threads",
    )
    model_path: Url | None = setting(
        "model_path",
        UrlText(),
        "Folder of the export, a TorchScript file, or a URL that is copied at "
        "start. Relative to the JSON file. It wins over a `storage` entry for "
        f"`{MODEL_FOLDER}`.",
        at="",
    )
    model_entry: str | None = setting(
        "model_entry",
        Text(),
        "The model inside `model_path`, a path below it.",
        at="",
    )
