from __future__ import annotations

import model_files
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.model.wire import Tokens, WireError, put_back, take_out


def taken(data: bytes) -> tuple[bytes, list[bytes], Tokens]:
    tokens = Tokens()
    reads: list[tuple[int, int]] = []

    def read_at(position: int, count: int) -> bytes:
        reads.append((position, count))
        assert position >= 0
        assert position + count <= len(data)
        return data[position : position + count]

    small, spans = take_out(read_at, len(data), tokens)
    return small, [data[span.position : span.position + span.length] for span in spans], tokens


def restored(small: bytes, payloads: list[bytes], tokens: Tokens) -> bytes:
    pieces = put_back(small, tokens, [len(payload) for payload in payloads])
    return b"".join(payloads[piece] if isinstance(piece, int) else piece for piece in pieces)


def test_payloads_leave_and_return_at_every_depth() -> None:
    proto = model_files.everything(
        [one for one in model_files.tensors_of_every_type() if one.HasField("raw_data")]
    )
    training = proto.training_info.add()
    training.algorithm.CopyFrom(model_files.mlp().graph)
    sparse = proto.graph.sparse_initializer.add(dims=[600])
    sparse.values.CopyFrom(model_files.tensor("s", model_files.random(300)))
    data = proto.SerializeToString()
    small, payloads, tokens = taken(data)
    assert len(payloads) > 30
    assert all(len(payload) >= 1024 for payload in payloads)
    assert len(small) < len(data) - sum(map(len, payloads)) + 40 * len(payloads)
    parsed = onnx.ModelProto.FromString(small)
    assert parsed.graph.initializer[0].name == "w"
    assert tokens.index(parsed.graph.initializer[0].raw_data) is not None
    assert restored(parsed.SerializeToString(), payloads, tokens) == data


def test_packed_numbers_count_as_raw_bytes() -> None:
    proto = model_files.mlp(1)
    one = proto.graph.initializer[0]
    expected = bytes(one.raw_data)
    numbers = onnx.numpy_helper.to_array(one).ravel()
    one.ClearField("raw_data")
    one.float_data.extend(numbers)
    small, payloads, tokens = taken(proto.SerializeToString())
    assert payloads == [expected]
    assert tokens.index(onnx.ModelProto.FromString(small).graph.initializer[0].raw_data) == 0


@pytest.mark.parametrize("field", ["float_data", "int64_data", "raw_data"])
def test_a_tensor_with_two_payloads_is_left_to_the_parser(field: str) -> None:
    proto = model_files.mlp(1)
    data = proto.graph.initializer[0].SerializeToString()
    second = onnx.TensorProto()
    if field == "raw_data":
        second.raw_data = b"1234"
    else:
        getattr(second, field).append(3)
    # Two encodings one after the other are merged into one message.
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString() + field_of(5, data + second.SerializeToString())
    proto.ClearField("graph")
    with pytest.raises(WireError):
        taken(proto.SerializeToString() + field_of(7, graph))


def field_of(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def test_framing_that_is_unusual_is_refused() -> None:
    for data in (
        b"\x0b\x0c",  # a group
        b"\x0f",  # wire type 7
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2 ** 64 - 1
        b"\x08" + b"\xff" * 11,  # a number without an end
        b"\x3a\x05abc",  # a field that ends after its message
        b"\x09abc",  # half a double
        b"\x08",  # a tag without a value
    ):
        with pytest.raises(WireError):
            taken(data)


def test_tokens_are_not_taken_for_data() -> None:
    first, second = Tokens(), Tokens()
    assert first.index(first.of(70_000)) == 70_000
    assert first.index(second.of(3)) is None
    assert first.index(b"") is None
    assert first.index(first.of(3) + b"x") is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 5000), st.integers(0, 255))
def test_damage_never_reads_outside_and_never_hangs(noise: bytes, position: int, byte: int) -> None:
    data = bytearray(model_files.mlp(1, 17).SerializeToString())
    position %= len(data)
    data[position] = byte
    damaged = bytes(data[:position]) + noise + bytes(data[position:])
    try:
        small, payloads, tokens = taken(damaged)
        assert restored(small, payloads, tokens)
    except WireError:
        pass
