"""The raw limit: forward of a TorchScript model on ready tensors, on one core.

Runs beside a server as ``raw.py SERVICE_JSON REQUEST...``: prints one JSON line with
the scores of the first request when it is ready, then for each number read from
standard input one line with the nanoseconds of that many forwards.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensors import TensorMaker

WARM_UP = 20


def main(service_json: str, *requests: str) -> None:
    torch.set_num_threads(1)
    maker = TensorMaker(Path(service_json))
    model = torch.jit.load(str(maker.export / "scripted_model.pt")).eval()
    batches = []
    for request in requests:
        arrays = maker.tensors(Path(request).read_bytes())
        batches.append({name: torch.from_numpy(a) for name, a in arrays.items()})
    with torch.inference_mode():
        for at in range(WARM_UP):
            model(batches[at % len(batches)])
        scores = {name: t.tolist() for name, t in model(batches[0]).items()}
        print(json.dumps({"scores": scores}), flush=True)
        for line in sys.stdin:
            print(json.dumps(run(model, batches, int(line))), flush=True)


def run(
    model: Any, batches: list[dict[str, torch.Tensor]], count: int
) -> dict[str, Any]:
    walls = []
    cpu = time.process_time_ns()
    for at in range(count):
        started = time.perf_counter_ns()
        model(batches[at % len(batches)])
        walls.append(time.perf_counter_ns() - started)
    return {"cpu": time.process_time_ns() - cpu, "walls": walls}


if __name__ == "__main__":
    main(*sys.argv[1:])
