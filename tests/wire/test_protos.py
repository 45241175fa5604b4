"""Our messages against the descriptors of the vendor's SDK, message by message."""

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor as F

from procserver.wire.dtypes import ArrayDataType
from procserver.wire.pb import (
    easyrec_predict_pb2,
    tensorflow_predict_pb2,
    torch_predict_pb2,
    torchrec_predict_pb2,
)

LISTING = Path(__file__).parent.parent / "data" / "eas_descriptors.txt"
OURS = {
    "eas_prediction.torchrec_predict_pb2": torchrec_predict_pb2,
    "eas_prediction.pytorch_predict_pb2": torch_predict_pb2,
    "eas_prediction.easyrec_predict_pb2": easyrec_predict_pb2,
    "eas_prediction.tf_request_pb2": tensorflow_predict_pb2,
}
# EasyRec requests are read with the torchrec superset.
ELSEWHERE = {
    ("eas_prediction.easyrec_predict_pb2", name): torchrec_predict_pb2
    for name in ("ContextFeatures", "PBFeature", "PBRequest")
}
TYPES = {
    F.TYPE_INT32: "int32",
    F.TYPE_INT64: "int64",
    F.TYPE_STRING: "string",
    F.TYPE_BYTES: "bytes",
    F.TYPE_FLOAT: "float",
    F.TYPE_DOUBLE: "double",
    F.TYPE_BOOL: "bool",
}


def listed():
    """{(module, message or enum): {field number or name: rest of the line}}."""
    out = {}
    module = entry = None
    for line in LISTING.read_text().splitlines():
        if line.startswith("===="):
            module = line.split()[1].rstrip(":")
        elif line.startswith("message "):
            entry = out.setdefault((module, line.split()[1]), {})
        elif line.startswith("enum "):
            name, members = line[5:].split(": ")
            pairs = (member.split("=") for member in members.split(", "))
            out[module, name] = {n: int(v) for n, v in pairs}
        else:
            number, name, kind = re.match(r"\s*(\d+) (\w+): (.*)", line).groups()
            kind = kind.replace(" [packed=True]", "").replace(" oneof=value", "")
            # Packages are not on the wire and ours are our own.
            entry[int(number)] = (name, re.sub(r"[\w.]+\.(\w+)", r"\1", kind))
    return out


def kind_of(field):
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{kind_of(key)},{kind_of(value)}>"
    if field.type == F.TYPE_MESSAGE:
        kind = field.message_type.name
    elif field.type == F.TYPE_ENUM:
        kind = field.enum_type.name
    else:
        kind = TYPES[field.type]
    return f"repeated {kind}" if field.is_repeated else kind


@pytest.mark.parametrize(
    ("where", "facts"), listed().items(), ids=lambda v: v[1] if len(v) == 2 else ""
)
def test_names_numbers_and_types(where, facts):
    module, name = where
    ours = ELSEWHERE.get(where, OURS[module]).DESCRIPTOR
    if name in ours.enum_types_by_name:
        enum = ours.enum_types_by_name[name]
        assert {v.name: v.number for v in enum.values} == facts
        return
    message = ours.message_types_by_name[name]
    fields = {f.number: (f.name, kind_of(f)) for f in message.fields}
    assert facts.items() <= fields.items()
    if (module, name) in ELSEWHERE:
        return
    extra = {(name, n) for n in fields.keys() - facts.keys()}
    assert extra <= {("PredictRequest", 100)}


def test_the_listing_was_read():
    facts = listed()
    assert len(facts) > 45
    assert facts["eas_prediction.torchrec_predict_pb2", "PBFeature"][30] == (
        "double_lists",
        "DoubleLists",
    )
    assert facts["eas_prediction.pytorch_predict_pb2", "PredictRequest"][3] == (
        "map_inputs",
        "map<string,ArrayProto>",
    )


def test_array_data_type_is_the_enum_of_the_messages():
    for module in (torch_predict_pb2, tensorflow_predict_pb2):
        assert {m.name: m.value for m in ArrayDataType} == dict(
            module.ArrayDataType.items()
        )


def test_our_packages_do_not_clash_with_the_sdk():
    for module in OURS.values():
        assert module.DESCRIPTOR.package.startswith("procserver.wire.")
        assert module.DESCRIPTOR.name.startswith("procserver/wire/pb/")
