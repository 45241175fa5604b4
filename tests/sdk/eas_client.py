"""Runs in the SDK's own environment: one call a line of JSON on stdin.

Each call is {"kind", "endpoint", "service", "token", ...}; each answer is one
line of JSON: scores by output, or the error's status and text.
"""

import json
import sys

from eas_prediction import ENDPOINT_TYPE_DIRECT, PredictClient, TorchRequest
from eas_prediction.exception import PredictException
from eas_prediction.torchrec_request import TorchRecRequest


def torchrec(call):
    """The vendor page's example, with ids and features of the call."""
    request = TorchRecRequest()
    for name, value, dtype in call["user"]:
        request.add_user_fea(name, value, dtype)
    for name, value, dtype in call.get("context", []):
        request.add_context_fea(name, value, dtype)
    for item in call["items"]:
        request.add_item_id(item)
    return request


def torch(call):
    request = TorchRequest(call.get("compressed", False))
    for index, (shape, dtype, fill) in enumerate(call["inputs"]):
        count = 1
        for dim in shape:
            count *= dim
        request.add_feed(index, shape, getattr(TorchRequest, dtype), [fill] * count)
    for index in call.get("fetch", []):
        request.add_fetch(index)
    return request


def answer(call):
    client = PredictClient(call["endpoint"], call["service"])
    client.set_token(call["token"])
    client.set_timeout(30000)
    client.set_retry_count(call.get("retries", 5))
    if call.get("direct"):
        client.set_endpoint_type(ENDPOINT_TYPE_DIRECT)
    client.init()
    try:
        if call["kind"] == "torchrec":
            response = client.predict(torchrec(call))
            return {
                "scores": {
                    name: list(array.float_val)
                    for name, array in response.map_outputs.items()
                },
                "items": list(response.item_ids),
            }
        response = client.predict(torch(call)).response
        return {"outputs": [list(array.float_val) for array in response.outputs]}
    except PredictException as error:
        text = error.message
        if isinstance(text, bytes):
            text = text.decode()
        return {"status": error.code, "text": str(text)}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
