"""Which nodes kernels stand for, in graphs as ONNX Runtime writes them on other machines."""

import onnx
import onnx_ir as ir

from onnxprune.runtime.covering import cover, marks


def graph(text):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')).graph


def covered(model, ran):
    """Node names of the model are ``node#0``, ``node#1`` ..., as for a session."""
    marked = graph(model)
    for number, node in enumerate(marked):
        node.name = f"node#{number}"
    kernels = list(graph(ran))
    for kernel in kernels:  # the parser takes no such name
        if str(kernel.name).startswith("fused_"):
            kernel.name = kernel.name.replace("_", " node#")
    return cover(marked, kernels)


CONV_RELU = """g (float[1, 4, 8, 8] x, float[4, 4, 1, 1] w) => (float[1, 4, 8, 8] y) {
    c = Conv(x, w)  y = Relu(c) }"""


def test_a_layout_change_that_writes_a_value_of_the_model_is_not_its_node():
    """Channels-last providers name the convolution by its node, and give its value to a Transpose."""
    ran = """g (float[1, 4, 8, 8] x, float[4, 4, 1, 1] w) => (float[1, 4, 8, 8] y) {
        [Transpose] t = Transpose<perm = [0, 2, 3, 1]>(x)
        [fused_0_1] u = FusedConv(t, w)
        [Transpose_token_1] y = Transpose<perm = [0, 3, 1, 2]>(u) }"""
    assert covered(CONV_RELU, ran) == [(), (0, 1), ()]


def test_an_integer_kernel_rounds_its_own_result():
    model = """g (int8[1, 4, 8, 8] x, int8[4, 4, 1, 1] w, float s, int8 z) => (float[1, 4, 8, 8] y) {
        a = DequantizeLinear(x, s, z)  b = DequantizeLinear(w, s, z)  c = Conv(a, b)
        q = QuantizeLinear(c, s, z)  y = DequantizeLinear(q, s, z) }"""
    ran = """g (int8[1, 4, 8, 8] x, int8[4, 4, 1, 1] w, float s, int8 z) => (float[1, 4, 8, 8] y) {
        t = Transpose(x)  [fused_2] u = QLinearConv(t, s, z, w, s, z, s, z)
        v = Transpose(u)  y = DequantizeLinear(v, s, z) }"""
    assert covered(model, ran) == [(), (0, 1, 2, 3), (), (4,)]


def test_nodes_that_were_folded_belong_to_nobody():
    model = """g (float[4] x) => (float[4] y) {
        a = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()  b = Neg(a)  y = Add(x, b) }"""
    assert covered(model, "g (float[4] x, float[4] b) => (float[4] y) { y = Add(x, b) }") == [(2,)]


def test_a_node_that_several_kernels_read_goes_to_the_first():
    model = """g (float[4] x) => (float[4] y, float[4] z) { a = Identity(x)  y = Neg(a)  z = Abs(a) }"""
    ran = """g (float[4] x) => (float[4] y, float[4] z) { y = Neg(x)  z = Abs(x) }"""
    assert covered(model, ran) == [(0, 1), (2,)]


def test_what_a_body_reads_counts_as_read():
    model = """g (float[4] x, bool c) => (float[4] y) {
        a = Neg(x)
        y = If(c) <then_branch = t () => (float[4] o) { o = Relu(a) },
                   else_branch = e () => (float[4] p) { p = Abs(x) }> }"""
    ran = model.replace("a = Neg(x)", "").replace("Relu(a)", "Relu(x)")
    assert covered(model, ran) == [(0, 1)]


def test_a_mark_beyond_the_model_is_none():
    """A model's own name may look like a mark."""
    ran = graph("g (float[4] x) => (float[4] q) { q = Neg(x) }")
    next(iter(ran)).name = "node#77"
    model = graph("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    next(iter(model)).name = "node#0"
    assert cover(model, list(ran)) == [()]
    assert marks("fused node#12 node#3 node#12") == (3, 12)
