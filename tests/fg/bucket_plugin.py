"""A plug-in as a user would write it; the tests install it as an entry point."""

import bisect
import threading
import time


class BucketOp:
    value_type = "float"

    def __init__(self, entry):
        self.edges = [float(x) for x in entry["bucket_threshold"].split(":")]
        self.calls = []

    def process(self, inputs):
        self.calls.append(inputs)
        (cells,) = inputs
        return [
            None if c is None else bisect.bisect(self.edges, float(c)) for c in cells
        ]


class Tags:
    value_type = "string"

    def __init__(self, entry):
        self.entry = entry

    def process(self, inputs):
        found = []
        for left, right in zip(*inputs, strict=True):
            found.append([f"{left!r}", f"{right!r}"] if left is not None else None)
        return found


class Big:
    value_type = "int64"

    def __init__(self, entry):
        self.value = entry["value"]

    def process(self, inputs):
        return [self.value for _ in inputs[0]]


class Slow:
    """Notices calls that overlap."""

    value_type = "float"
    inside = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, entry):
        type(self).most = 0

    def process(self, inputs):
        with self.lock:
            type(self).inside += 1
            type(self).most = max(self.most, self.inside)
        time.sleep(0.02)
        with self.lock:
            type(self).inside -= 1
        return [1.0] * len(inputs[0])


def broken(entry):
    raise KeyError("no such parameter")


def shapeless(entry):
    return object()
