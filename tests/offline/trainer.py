"""A small trainer that calls ``pyfg`` as TorchEasyRec's parser and features do.

Written from the calls, not from the code: which methods, with which arguments, and
what is read of the results. ``import pyfg`` is what the test puts in its place.
"""

import numpy as np
import pyfg
import torch


class Feature:
    """What a parser knows of a feature: its name, form and side."""

    def __init__(self, entry, group=None, *, weighted=False):
        self.entry = entry
        self.group = group
        own = entry["feature_name"]
        self.name = f"{group['sequence_name']}__{own}" if group else own
        self.is_sequence = group is not None
        raw = entry["feature_type"] in ("raw_feature", "lookup_feature")
        self.is_sparse = not raw or "boundaries" in entry
        self.is_weighted = weighted
        self.value_dim = entry.get("value_dim", 1 if raw else 0)
        self._op = None

    def fg_json(self):
        if self.group:
            return {"features": [self.group | {"features": [self.entry]}]}
        return {"features": [self.entry]}

    def handler(self):
        if self._op is None:
            self._op = pyfg.FgArrowHandler(self.fg_json(), 1)
        return self._op

    def side_inputs(self):
        expression = self.entry["expression"]
        written = [expression] if isinstance(expression, str) else expression
        prefix = f"{self.group['sequence_name']}__" if self.group else ""
        return [
            (side, prefix + name)
            for side, _, name in (text.partition(":") for text in written)
        ]

    def encoded_default(self):
        """The direct call; a list, or None where the feature has none."""
        output, status = self.handler()(
            {name: [None] for _, name in self.side_inputs()}
        )
        assert status.ok(), status.message()
        value = output[self.name][0]
        self.handler().reset_executor()
        if value is not None and not isinstance(value, list):
            value = [value]
        return value

    def parse(self, data):
        """Generation of this feature alone, over all columns of the batch."""
        output, status = self.handler().process_arrow(data)
        assert status.ok(), status.message()
        return tensors_of(self, output[self.name])

    def __del__(self):
        if self._op and isinstance(self._op, pyfg.FgArrowHandler):
            self._op.reset_executor()


class Parser:
    """Generation of all features in one run."""

    def __init__(self, features, *, threads=1, bucketize_only=False, tile=False):
        self.features = features
        groups = {}
        entries = []
        for feature in features:
            if feature.group is None:
                entries.append(feature.entry)
            elif feature.group["sequence_name"] not in groups:
                group = feature.group | {"features": [feature.entry]}
                groups[feature.group["sequence_name"]] = group
                entries.append(group)
            else:
                groups[feature.group["sequence_name"]]["features"].append(feature.entry)
        fg_json = {"features": entries}
        self.handler = pyfg.FgArrowHandler(
            fg_json, threads, bucketize_only=bucketize_only
        )
        if bucketize_only:
            self.input_names = {feature.name for feature in features}
        else:
            self.input_names = (
                self.handler.user_inputs()
                | self.handler.item_inputs()
                | self.handler.context_inputs()
            ) - set(self.handler.sequence_feature_pks().values())
        self.user_inputs = self.handler.user_inputs() | set(
            self.handler.sequence_input_to_name().keys()
        )
        self.user_features = self.handler.user_features() | set(
            self.handler.sequence_feature_to_name().keys()
        )
        self.tile = tile

    def parse(self, data):
        result = {}
        if self.tile:
            for name in list(data):
                result.setdefault("batch_size", torch.tensor(len(data[name])))
                if name in self.user_inputs:
                    data[name] = data[name].take([0])
        data = {name: data[name] for name in data if name in self.input_names}
        output, status = self.handler.process_arrow(data)
        assert status.ok(), status.message()
        for feature in self.features:
            result |= tensors_of(feature, output[feature.name])
        return result


def tensors_of(feature, data):
    """Torch tensors, made without a copy of arrays that may be written to."""
    name = feature.name
    if not feature.is_sparse:
        found = {f"{name}.values": to_tensor(data.dense_values)}
        if feature.is_sequence:
            found[f"{name}.lengths"] = to_tensor(data.np_lengths)
        return found
    found = {
        f"{name}.values": to_tensor(data.np_values),
        f"{name}.lengths": to_tensor(data.np_lengths),
    }
    if feature.is_sequence and feature.value_dim != 1:
        found[f"{name}.key_lengths"] = to_tensor(data.np_key_lengths)
    if feature.is_weighted:
        found[f"{name}.weights"] = to_tensor(data.np_weights)
    return found


def early_tensors_of(feature, data):
    """As releases before the ``np_`` names did it."""
    found = {
        f"{feature.name}.values": torch.tensor(data.values, dtype=torch.int64),
        f"{feature.name}.lengths": to_tensor(np.asarray(data.lengths, dtype=np.int32)),
    }
    if feature.is_weighted:
        weights = torch.tensor(data.weights, dtype=torch.float32)
        found[f"{feature.name}.weights"] = weights
    return found


def to_tensor(array):
    if not array.flags.writeable:
        array = np.array(array)
    return torch.from_numpy(array)


def vocabulary_size(entry):
    """How the size of a tokenizer's embedding table is asked for."""
    return pyfg.FeatureFactory.create(entry, False).vocab_size()
