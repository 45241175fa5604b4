"""The service JSON of the demo and of its twin without FG."""

from typing import Any

# Those of the vendor page's sample calls, which so run unmodified.
NAME = "alirec_rank_with_fg"
BYPASS_NAME = "alirec_rank_no_fg"
# A demo's token protects nothing: it is there so that clients are seen to send it.
TOKEN = "procserver-demo-token"
MODEL_MOUNT = "/home/admin/docker_ml/workspace/model/"
PROCESSOR = "easyrec-torch-1.12"


def service_document(base: str = "") -> dict[str, Any]:
    """The ranking service; ``base`` leads from the JSON file to the demo."""
    return {
        "metadata": metadata(NAME),
        "processor": PROCESSOR,
        "token": TOKEN,
        "model_config": {
            "fg_mode": "normal",
            "fg_threads": 1,
            "outputs": "probs_ctr,probs_cvr",
            "item_empty_score": -1,
            "remote_type": "parquet",
            "url": f"{base}items.parquet",
            "tables": [{"key": "item_id"}],
        },
        "storage": [model_storage(f"{base}export")],
    }


def bypass_document(base: str = "") -> dict[str, Any]:
    """The twin: no FG, no items."""
    return {
        "metadata": metadata(BYPASS_NAME),
        "processor": PROCESSOR,
        "token": TOKEN,
        "model_config": {"fg_mode": "bypass"},
        # A bare model does not say what it takes: this request warms it up.
        "warm_up_data_path": f"{base}requests/bypass.pb",
        "storage": [model_storage(f"{base}bypass")],
    }


def metadata(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "rpc": {"max_queue_size": 256, "worker_threads": 16},
    }


def model_storage(path: str) -> dict[str, Any]:
    return {"mount_path": MODEL_MOUNT, "local": {"path": path}}
