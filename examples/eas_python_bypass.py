"""Sends ready tensors with the EAS Python SDK: 10 MB in, one score per item out.

    pip install eas-prediction
    python examples/eas_python_bypass.py [ENDPOINT] [SERVICE] [TOKEN]

The defaults are those of the demo's bypass twin on port 8502:

    PROCSERVER_CONFIG=demo/bypass.json gunicorn -c conf/serve.py -b 127.0.0.1:8502
"""

import os
import sys

from eas_prediction import PredictClient, TorchRequest

SETTINGS = {
    "EAS_BYPASS_ENDPOINT": "http://127.0.0.1:8502",
    "EAS_BYPASS_SERVICE": "alirec_rank_no_fg",
    "EAS_TOKEN": "procserver-demo-token",
}
ROWS = 300


def settings():
    """Endpoint, service and token: arguments, then environment, then the demo's."""
    given = sys.argv[1:] + [""] * len(SETTINGS)
    return [
        argument or os.environ.get(name) or default
        for argument, (name, default) in zip(given, SETTINGS.items())  # noqa: B905
    ]


def request():
    """Four tensors by position: ids, history, content, scene."""
    req = TorchRequest(False)
    req.add_feed(0, [ROWS, 3], TorchRequest.DT_INT64, list(range(ROWS * 3)))
    req.add_feed(1, [ROWS, 10, 768], TorchRequest.DT_FLOAT, [1.0] * (ROWS * 10 * 768))
    req.add_feed(2, [ROWS, 768], TorchRequest.DT_FLOAT, [1.0] * (ROWS * 768))
    req.add_feed(3, [ROWS], TorchRequest.DT_INT64, [1] * ROWS)
    return req


def main():
    endpoint, service, token = settings()
    client = PredictClient(endpoint, service)
    client.set_token(token)
    # The SDK encodes 10 MB in plain Python: give a slow machine time.
    client.set_timeout(30000)
    client.init()
    response = client.predict(request())
    scores = response.get_values(0)
    print("output 0: shape", response.get_tensor_shape(0))
    print("first scores:", [round(score, 6) for score in scores[:5]])


if __name__ == "__main__":
    main()
