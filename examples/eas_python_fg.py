"""Scores items with the EAS Python SDK: user features in, item ids in, scores out.

    pip install eas-prediction
    python examples/eas_python_fg.py [ENDPOINT] [SERVICE] [TOKEN]

The defaults are those of the demo service that `make serve` starts.
"""

import os
import sys

from eas_prediction import PredictClient
from eas_prediction.torchrec_request import TorchRecRequest

SETTINGS = {
    "EAS_ENDPOINT": "http://127.0.0.1:8501",
    "EAS_SERVICE": "alirec_rank_with_fg",
    "EAS_TOKEN": "procserver-demo-token",
}


def settings():
    """Endpoint, service and token: arguments, then environment, then the demo's."""
    given = sys.argv[1:] + [""] * len(SETTINGS)
    return [
        argument or os.environ.get(name) or default
        for argument, (name, default) in zip(given, SETTINGS.items())  # noqa: B905
    ]


def request():
    """One user with a click history, one request context, five items."""
    req = TorchRecRequest()
    req.add_user_fea("user_id", "u001d", "STRING")
    req.add_user_fea("gender", "female", "STRING")
    req.add_user_fea("age", 32, "INT")
    req.add_user_fea("city", "city_07", "STRING")
    req.add_user_fea("spend_level", 6, "INT")
    req.add_user_fea("search_words", "coffee;travel", "STRING")
    # The newest click first. The server looks up what these items are.
    req.add_user_fea(
        "click_seq", ["item_0042", "item_0007", "item_1234"], "list<string>"
    )
    req.add_user_fea("click_seq__hours_ago", [0.2, 0.5, 30.0], "list<float>")
    # One value for all items; a value per item is as good.
    req.add_context_fea("hour", 20, "INT")
    for item in ("item_0001", "item_0002", "item_0003", "item_0004", "no_such_item"):
        req.add_item_id(item)
        req.add_context_fea("recall_source", "i2i", "STRING")
    return req


def main():
    endpoint, service, token = settings()
    client = PredictClient(endpoint, service)
    client.set_token(token)
    client.init()
    response = client.predict(request())
    names = sorted(response.map_outputs)
    print("%-16s" % "item" + "".join("%12s" % name for name in names))  # noqa: UP031
    for at, item in enumerate(response.item_ids):
        scores = [response.map_outputs[name].float_val[at] for name in names]
        print("%-16s" % item + "".join("%12.6f" % score for score in scores))  # noqa: UP031


if __name__ == "__main__":
    main()
