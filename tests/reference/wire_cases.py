"""Builders of requests and a check that a request means what upb says it means."""

from procserver.wire import torchrec
from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference import wire_walk
from tests.reference.wire_noise import length


def agree(body):
    """Our request, once it is found equal to upb's."""
    request = torchrec.decode(body)
    expected = wire_walk.request(PBRequest.FromString(body))
    assert wire_walk.frozen(wire_walk.decoded(request)) == wire_walk.frozen(expected)
    return request


def user(feature):
    return length(2, b"\x0a\x01x" + length(2, feature))


def rows(*features):
    columns = b"".join(length(1, feature) for feature in features)
    return length(4, b"\x0a\x01x" + length(2, columns))


def many(alternative, values):
    feature = PBFeature()
    getattr(feature, alternative).features.extend(values)
    getattr(feature, alternative).SetInParent()
    return feature


def mapping(alternative, values):
    feature = PBFeature()
    getattr(feature, alternative).map_field.update(values)
    getattr(feature, alternative).SetInParent()
    return feature


def nested(alternative, lists):
    feature = PBFeature()
    getattr(feature, alternative).SetInParent()
    for values in lists:
        getattr(feature, alternative).lists.add().features.extend(values)
    return feature


def tensor_request(dims=(), named=None, **fields):
    message = PredictRequest()
    tensor = message.map_inputs[named] if named else message.inputs.add()
    for name, value in fields.items():
        if name == "dtype":
            tensor.dtype = value
        else:
            getattr(tensor, name).extend(value)
    tensor.array_shape.dim.extend(dims)
    return message.SerializeToString()
