"""Text features: what a request of many items costs, and what the library alone does.

Run from the repository root, with a ``tokenizer.json``:
``python loadtest/micro/fg_text.py TOKENIZER [--items N] [--json FILE]``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cython_ext.column import Column
from procserver.fg import FeatureGenerator

TITLE = "Red Summer Dress 夏季 連衣裙 no. {}, size {} | free shipping"


def interleaved(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU microseconds of one call of each; rounds take turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(21):
        for name, function in functions.items():
            start = time.process_time_ns()
            function()
            times[name].append((time.process_time_ns() - start) / 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    texts = [TITLE.format(i, i % 7) for i in range(options.items)]
    item = {"title": Column.from_arrow(pa.array(texts))}
    user = {"query": Column.from_arrow(pa.array(["summer dress 连衣裙"]))}
    common = {"feature_name": "f", "expression": "item:title"}
    entries: dict[str, dict[str, Any]] = {
        "tokenize": {
            "feature_type": "tokenize_feature",
            "vocab_file": options.tokenizer.name,
        },
        "normalize": {"feature_type": "text_normalizer", "hash_bucket_size": 1000},
        "regex": {
            "feature_type": "regex_replace_feature",
            "regex_pattern": [r"\d+", r"\|"],
            "replacement": "",
            "hash_bucket_size": 1000,
        },
        "distance": {
            "feature_type": "custom_feature",
            "operator_name": "EditDistance",
            "encoding": "utf-8",
            "expression": ["user:query", "item:title"],
        },
    }
    functions: dict[str, Callable[[], Any]] = {}
    for name, entry in entries.items():
        generator = FeatureGenerator(
            {"features": [common | entry]}, asset_dir=options.tokenizer.parent
        )
        functions[name] = lambda g=generator: g.generate(
            user, item, {}, len(texts), tile=True
        )
        details = generator.spec.features[0].details
        if name == "tokenize":
            functions["tokenize, library alone"] = lambda d=details: d.encode(texts)
    found = interleaved(functions)
    for name, micros in found.items():
        print(f"{name:25} {micros / len(texts):8.3f} us per item")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
