"""Packed content: the same records in few objects."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flsimulation.messages import packing
from flsimulation.messages.packing import is_packed, pack, unpack
from flsimulation.runtimes.simulated import flower_identity

names = st.text(min_size=1, max_size=8)
numbers = st.integers(-(2**53), 2**53) | st.floats()
arrays = st.dictionaries(
    names,
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


@given(
    arrays,
    st.dictionaries(names, numbers | st.text(max_size=5) | st.binary(max_size=5) | st.booleans()),
    st.dictionaries(names, numbers),
    st.booleans(),
    st.sampled_from([0, 2**30]),
)
def test_what_is_packed_comes_back_the_same(
    model: dict[str, np.ndarray],
    config: dict[str, object],
    metrics: dict[str, float],
    shared: bool,
    limit: int,
) -> None:
    content = RecordDict(
        {
            "b": ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()}),
            "config": ConfigRecord(config),  # type: ignore[arg-type]
            "a": MetricRecord(metrics),  # type: ignore[arg-type]
        }
    )
    large = packing._LARGE
    packing._LARGE = limit
    try:
        packed = pack(content, {} if shared else None)
    finally:
        packing._LARGE = large
    assert is_packed(packed)
    assert not is_packed(content)
    back = unpack(packed)
    assert list(back) == list(content)
    assert list(back["b"]) == list(model)  # type: ignore[call-overload]
    for name, value in model.items():
        array = back["b"][name].numpy()  # type: ignore[index]
        assert (array.dtype, array.shape) == (value.dtype, value.shape)
        assert array.tobytes() == np.asarray(value, order="C").tobytes()
    assert repr(dict(back["config"])) == repr(dict(content["config"]))  # type: ignore[call-overload]
    assert repr(dict(back["a"])) == repr(dict(content["a"]))  # type: ignore[call-overload]


def test_small_records_that_are_not_small_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(RecordDict({"config": ConfigRecord({"text": "x" * 100})}))
    assert unpack(packed)["config"]["text"] == "x" * 100  # type: ignore[index]
    monkeypatch.setattr(packing, "_LONGEST", 100)
    with pytest.raises(ValueError, match="its small records have 1.. characters, 100 at most"):
        unpack(packed)


def test_a_model_of_six_arrays_travels_as_four_objects_down_and_three_up() -> None:
    model = ArrayRecord({str(i): Array(np.full(3, i, np.float32)) for i in range(6)})
    shared: dict[int, ConfigRecord | ArrayRecord] = {}

    def objects(partition: int, shared: dict[int, ConfigRecord | ArrayRecord] | None) -> set[str]:
        records = {"arrays": model, "config": ConfigRecord({"partition": partition})}
        message = Message(pack(RecordDict(records), shared), 2, "train")
        return set(get_all_nested_objects(message))

    with flower_identity():
        one, other = objects(0, shared), objects(1, shared)
        own = objects(0, None)
    assert len(one) == 4  # message, record dict, the model, all other records
    assert len(one & other) == 1  # the model: stored once
    assert len(own) == 3
