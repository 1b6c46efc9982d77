"""Unpacked weights are those that the runtime computes with."""

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from quantized_models import integers, random_steps

from onnxprune.ops.packed import nonzero_weight, real_weight
from onnxprune.runtime import open_session


def product(bits: int, length: int, zeros: np.ndarray | None) -> ir.Model:
    blocks = -(-length // 16)
    return graph(
        f"""y = com.microsoft.MatMulNBits<K={length}, N=5, bits={bits}, block_size=16>(
            x, b_w, b_s{"" if zeros is None else ", b_z"})""",
        inputs=f"float[{length},{length}] x",
        constants={
            "b_w": integers(5, blocks, 2 * bits, dtype=np.uint8), "b_s": random_steps(5 * blocks),
            **({} if zeros is None else {"b_z": zeros}),
        },
    )  # fmt: skip


@pytest.mark.parametrize(("bits", "length"), [(4, 48), (4, 40), (8, 48)])
@pytest.mark.parametrize("zeros", ["none", "bytes", "floats"])
def test_unpacked_weights_are_those_of_the_runtime(bits, length, zeros):
    contents = {
        "none": None,
        "bytes": integers(5, -(-3 * bits // 8), seed=4, dtype=np.uint8),
        "floats": np.random.default_rng(0).uniform(0, 15, (5, 3)).astype(np.float32),
    }[zeros]
    if bits == 8 and zeros == "floats":
        pytest.skip("the runtime has no kernel for it")
    model = product(bits, length, contents)
    (node,) = model.graph
    session = open_session(model, optimize="none", prepack=False, label="product")
    computed = session.run({"x": np.eye(length, dtype=np.float32)})["y"].T
    weight = real_weight(node).reshape(5, -1)
    np.testing.assert_allclose(weight[:, :length], computed, rtol=1e-3, atol=1e-5)
    assert not weight[:, length:].any()


def test_what_equals_the_zero_point_is_zero():
    zeros = integers(5, 2, seed=4, dtype=np.uint8)
    (node,) = product(4, 48, zeros).graph
    found = nonzero_weight(node)
    assert found.shape == (5, 48)
    low, high = zeros & 15, zeros >> 4
    stored = node.inputs[1].const_value.numpy().reshape(5, -1)
    per_block = np.stack([low[:, 0], high[:, 0], low[:, 1]], axis=1)
    np.testing.assert_array_equal(found[:, ::2], (stored & 15) != np.repeat(per_block, 8, axis=1))
    assert not found.all()
