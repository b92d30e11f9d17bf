"""Reads ``tf.train.Example``, the protocol buffer of a record, without TFDS.

Importing TFDS takes long, and looks for packages that may lie in the working directory.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_LISTS = {
    "bytes_list": ("BytesList", 12),
    "float_list": ("FloatList", 2),
    "int64_list": ("Int64List", 3),
}
_MESSAGE, _STRING, _OPTIONAL, _REPEATED = 11, 9, 1, 3


def _descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="example.proto", package="tensorflow", syntax="proto3"
    )
    for name, kind in _LISTS.values():
        file.message_type.add(name=name).field.add(
            name="value", number=1, label=_REPEATED, type=kind
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, (message, _)) in enumerate(_LISTS.items(), start=1):
        feature.field.add(
            name=name,
            number=number,
            label=_OPTIONAL,
            type=_MESSAGE,
            type_name=f".tensorflow.{message}",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_OPTIONAL, type=_STRING)
    entry.field.add(
        name="value", number=2, label=_OPTIONAL, type=_MESSAGE, type_name=".tensorflow.Feature"
    )
    features.field.add(
        name="feature",
        number=1,
        label=_REPEATED,
        type=_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=_OPTIONAL, type=_MESSAGE, type_name=".tensorflow.Features"
    )
    return file


def _example() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_descriptor())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _example()


def parse(record: bytes) -> dict[str, Any]:
    """The first value of each feature of a record.

    Raises:
        DecodeError: It is no protocol buffer.
        TypeError: A feature has no type.
        IndexError: A feature has no value.
    """
    features = _Example.FromString(record).features.feature
    return {
        name: getattr(feature, feature.WhichOneof("kind")).value[0]
        for name, feature in features.items()
    }
