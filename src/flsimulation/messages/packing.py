"""Packs a message's content into few parts, for networks, where each part is a request.

Flower sends every array, every record and every chunk of a message as a separate object: 17 requests
for the default model, and as many for each of the four transfers of a round. A packed message has
three or four. A model that is sent to many clients remains a separate object, which is stored once;
a large one remains an array, which Flower splits into chunks.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors.numpy import load, save

_REST = "flsim-packed"  # the record with all small records, and the models' places
_MODEL = "flsim-model:"
_ALL = "all"
_LARGE = 8 * 2**20  # bytes
_LONGEST = 32 * 2**20  # characters of the small records
_KINDS: dict[str, type[ConfigRecord] | type[MetricRecord]] = {
    "config": ConfigRecord,
    "metrics": MetricRecord,
}


def pack(
    content: RecordDict, shared: dict[int, ConfigRecord | ArrayRecord] | None = None
) -> RecordDict:
    """The content, packed into few records.

    Parameters
    ----------
    content : RecordDict
        The content; not changed.
    shared : dict, optional
        Packed models that are sent with other messages, too, by the ``id`` of the original; new
        ones are added. Without it, each model is packed into the message's own record.
    """
    packed, rest = RecordDict(), dict[str, dict[str, Any]]()
    own = ConfigRecord()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            rest[name] = {"arrays": list(record)}
            if shared is not None:
                if id(record) not in shared:
                    shared[id(record)] = _packed_model(record)
                packed[_MODEL + name] = shared[id(record)]
            elif isinstance(model := _packed_model(record), ConfigRecord):
                own[_MODEL + name] = model[_ALL]
            else:
                packed[_MODEL + name] = model
        else:
            kind = "config" if isinstance(record, ConfigRecord) else "metrics"
            rest[name] = {kind: {key: _plain(value) for key, value in record.items()}}
    own["json"] = json.dumps(rest)
    packed[_REST] = own
    return packed


def is_packed(content: RecordDict) -> bool:
    """Whether the content is from `pack`."""
    return _REST in content


def unpack(content: RecordDict) -> RecordDict:
    """The original content: the same records, in the same order."""
    text = str(cast(ConfigRecord, content[_REST])["json"])
    if len(text) > _LONGEST:  # as objects of Python it takes many times as much
        raise ValueError(f"its small records have {len(text):,} characters, {_LONGEST:,} at most")
    rest: dict[str, Any] = json.loads(text)
    return RecordDict({name: _record(name, held, content) for name, held in rest.items()})


def _record(
    name: str, held: Mapping[str, Any], content: RecordDict
) -> ArrayRecord | ConfigRecord | MetricRecord:
    if "arrays" in held:
        arrays = load(_model_bytes(_MODEL + name, content))
        return ArrayRecord({key: Array(arrays[key]) for key in held["arrays"]})
    ((kind, values),) = held.items()
    return _KINDS[kind]({key: _valued(value) for key, value in values.items()})


def _packed_model(record: ArrayRecord) -> ConfigRecord | ArrayRecord:
    # order="C" and not ascontiguousarray, which turns the shape [] into [1]
    model = save({key: np.array(array.numpy(), order="C") for key, array in record.items()})
    if len(model) < _LARGE:
        return ConfigRecord({_ALL: model})
    return ArrayRecord({_ALL: Array(np.frombuffer(model, np.uint8))})


def _model_bytes(name: str, content: RecordDict) -> bytes:
    packed = content.get(name)
    if packed is None:
        return cast(bytes, cast(ConfigRecord, content[_REST])[name])
    if isinstance(packed, ConfigRecord):
        return cast(bytes, packed[_ALL])
    return cast(ArrayRecord, packed)[_ALL].numpy().tobytes()


def _plain(value: Any) -> Any:
    """A value as JSON can represent it; bytes as an object with one key."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _valued(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    if isinstance(value, list):
        return [_valued(item) for item in value]
    return value
