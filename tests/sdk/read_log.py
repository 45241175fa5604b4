"""Runs in the SDK's own environment: reads request logs as the vendor's page does.

Paths on stdin, one a line; each answer is one line of JSON.
"""

import json
import sys

from eas_prediction.torchrec_predict_pb2 import PBLogData

for line in sys.stdin:
    entry = PBLogData()
    with open(line.strip(), "rb") as file:
        entry.ParseFromString(file.read())
    print(
        json.dumps(
            {
                "request_id": entry.request.meta_data["request_id"],
                "debug_level": entry.request.debug_level,
                "item_ids": list(entry.request.item_ids),
                "age": entry.request.user_features["age"].int_feature,
                "raw_features": dict(entry.raw_features),
                "generate_features": dict(entry.generate_features),
            }
        )
    )
