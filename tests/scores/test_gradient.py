"""Gradient scores against the same networks written in torch: masks at one, and loops over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph, group_of
from quantized_models import integers

from onnxprune.analyze import Analysis, analyze
from onnxprune.calibration.activations import Running
from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.scores import masked
from onnxprune.scores.gradient import notes_on_labels
from onnxprune.scores.on_data import score_on_data
from onnxprune.scores.subject import Subject

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SAMPLES, BATCH = 10, 4
Net = Callable[..., Any]


def tensors_of(proto: onnx.ModelProto) -> dict[str, Any]:
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def mlp(w: dict[str, Any], x: Any, **masks: Any) -> Any:
    """Logits [samples, 4]; masks multiply what a layer hands on."""
    h = functional.linear(x, w["fc1.weight"], w["fc1.bias"]).relu() * masks.get("fc1", 1)
    h = functional.linear(h, w["fc2.weight"], w["fc2.bias"]).relu() * masks.get("fc2", 1)
    return functional.linear(h, w["fc3.weight"], w["fc3.bias"])


def convolutions(w: dict[str, Any], x: Any, **masks: Any) -> Any:
    """Two consumers of one convolution, the one through a Relu; logits [samples, 3]."""
    a = functional.conv2d(x, w["w1"], w["b1"], padding=1)
    m = masks["w1"][:, None, None] if "w1" in masks else 1
    b = functional.conv2d(a.relu() * m, w["w2"]) + functional.conv2d(a * m, w["w3"])
    return b.mean(dim=(2, 3)) * masks.get("w2", 1) @ w["w4"]


def attention(w: dict[str, Any], x: Any, **masks: Any) -> Any:
    """The block of `small_models.attention`; the mask of heads stands at what the last projection sums up."""
    heads, size = 2, 4

    def split(name: str) -> Any:
        return (x @ w[f"{name}.weight"] + w[f"{name}.bias"]).reshape(len(x), -1, heads, size).transpose(1, 2)

    shares = (split("query") @ split("key").transpose(2, 3) * size**-0.5).softmax(dim=-1)
    mixed = shares @ split("value") * (masks["heads"][:, None, None] if "heads" in masks else 1)
    joined = mixed.transpose(1, 2).reshape(x.shape)
    y = x + joined @ w["out.weight"] + w["out.bias"]
    inner = (y @ w["up.weight"] + w["up.bias"]).relu() * masks.get("up", 1)
    return y + inner @ w["down.weight"] + w["down.bias"]


CONVOLUTIONS = graph(
    """
    a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    b = Conv(r, w2)
    c = Conv(a, w3)
    s = Add(b, c)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = MatMul(f, w4)
    """,
    inputs="float[N,2,5,5] x",
    outputs="float[N,3] y",
    constants={"w1": (6, 2, 3, 3), "b1": (6,), "w2": (5, 6, 1, 1), "w3": (5, 6, 1, 1), "w4": (5, 3)},
)

MLP = small_models.mlp(width=6)
ATTENTION = small_models.attention(width=8, heads=2, tokens=3)


def subject_of(
    proto: onnx.ModelProto, labels: Any = None, *, batch: int = BATCH, seed: int = 0, samples: int = SAMPLES
) -> Subject:
    analysis = analyze(ir.from_proto(proto))
    random = np.random.default_rng(1)
    shapes = analysis.shapes.input_shapes
    arrays = {
        name: random.standard_normal((samples, *shape[1:])).astype(np.float32)
        for name, shape in shapes.items()
    }
    if labels is not None:
        arrays["label"] = labels
    groups = [group for group in analysis.groups if group.frozen is None]
    data = Dataset.from_arrays(arrays, "calib.npz")
    return Subject(analysis.model, analysis.channels, groups, analysis.units, data, Running(batch), seed=seed)


def class_numbers(classes: int, samples: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(2).integers(0, classes, samples)


def analysis_of(subject: Subject) -> Analysis:
    return subject  # type: ignore[return-value]  # `group_of` looks at the groups alone


def given(subject: Subject) -> tuple[Any, Any]:
    labels = subject.data.labels
    return torch.from_numpy(subject.data.arrays["x"]), None if labels is None else torch.from_numpy(labels)


def by_masks(
    net: Net, proto: onnx.ModelProto, name: str, size: int, x: Any, losses: Callable[[Any], Any]
) -> Any:
    """dL/dm [samples, size] of a mask at one, sample by sample."""
    w, found = tensors_of(proto), []
    for number in range(len(x)):
        mask = torch.ones(size, requires_grad=True)
        loss = losses(net(w, x[number : number + 1], **{name: mask}))[number : number + 1]
        found.append(torch.autograd.grad(loss.sum(), mask)[0])
    return torch.stack(found)


MASKED = [
    pytest.param(mlp, MLP, "fc1", "fc1.weight", id="mlp 1"),
    pytest.param(mlp, MLP, "fc2", "fc2.weight", id="mlp 2"),
    pytest.param(convolutions, ir.to_proto(CONVOLUTIONS), "w1", "w1", id="two consumers"),
    pytest.param(convolutions, ir.to_proto(CONVOLUTIONS), "w2", "w2", id="pooled"),
]


@pytest.mark.parametrize(("net", "proto", "name", "tensor"), MASKED)
def test_a_mask_at_one_with_labels(net, proto, name, tensor):
    classes = 4 if net is mlp else 3
    subject = subject_of(proto, class_numbers(classes))
    x, labels = given(subject)
    group = group_of(analysis_of(subject), tensor, 0)

    def losses(logits: Any) -> Any:
        return functional.cross_entropy(logits.expand(SAMPLES, -1), labels, reduction="none")

    found = by_masks(net, proto, name, group.size, x, losses)
    taylor = score_on_data(subject, "taylor_activation").channels[group.name]
    np.testing.assert_allclose(taylor, found.abs().mean(dim=0), rtol=1e-4, atol=1e-8)
    fisher = score_on_data(subject, "fisher").channels[group.name]
    np.testing.assert_allclose(fisher, found.square().mean(dim=0) / 2, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize(("name", "tensor"), [("heads", "out.weight"), ("up", "down.weight")])
def test_a_mask_at_one_of_attention(name, tensor):
    random = np.random.default_rng(3)
    subject = subject_of(ATTENTION, random.standard_normal((SAMPLES, 3, 8)).astype(np.float32))
    x, labels = given(subject)
    group = group_of(analysis_of(subject), tensor, 0)
    assert group.kind == ("heads" if name == "heads" else "hidden")

    def losses(y: Any) -> Any:
        return (y - labels).square().mean(dim=(1, 2))

    found = by_masks(attention, ATTENTION, name, group.size, x, losses)
    scores = score_on_data(subject, "taylor_activation").channels[group.name]
    np.testing.assert_allclose(scores, found.abs().mean(dim=0), rtol=1e-4, atol=1e-8)


def test_samples_one_at_a_time_give_what_batches_give(monkeypatch):
    subject = subject_of(ATTENTION)
    at_once = score_on_data(subject, "fisher").channels
    monkeypatch.setattr(masked, "_starts_with_samples", lambda *_: False)
    one_by_one = score_on_data(subject, "fisher").channels
    assert at_once
    for name, values in at_once.items():
        np.testing.assert_allclose(one_by_one[name], values, rtol=1e-4)


def channel_sums(products: dict[str, Any], layer: str, following: str) -> Any:
    """What single weights of two layers sum up to over the members of the channels between them."""
    rows = products[f"{layer}.weight"].sum(dim=1) + products[f"{layer}.bias"]
    return rows + products[f"{following}.weight"].sum(dim=0)


def gradients(w: dict[str, Any], loss: Any) -> dict[str, Any]:
    return dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))


def trainable(proto: onnx.ModelProto) -> dict[str, Any]:
    return {name: value.requires_grad_() for name, value in tensors_of(proto).items()}


def test_taylor_is_the_square_of_what_the_members_of_a_channel_sum_up_to():
    subject = subject_of(MLP, class_numbers(4))
    x, labels = given(subject)
    w, expected = trainable(MLP), {"fc1": torch.zeros(6), "fc2": torch.zeros(6)}
    for start in range(0, SAMPLES, BATCH):
        part = slice(start, start + BATCH)
        g = gradients(w, functional.cross_entropy(mlp(w, x[part]), labels[part]))
        products = {name: (w[name] * g[name]).detach() for name in w}
        for layer, following in (("fc1", "fc2"), ("fc2", "fc3")):
            change = channel_sums(products, layer, following)
            expected[layer] += change.square() * len(x[part]) / SAMPLES
    scores = score_on_data(subject, "taylor")
    assert scores.losses
    for layer, values in expected.items():
        np.testing.assert_allclose(scores.channels[layer], values, rtol=1e-4, atol=1e-9)


def test_obd_sums_squares_sample_by_sample_over_drawn_targets():
    subject = subject_of(MLP, class_numbers(4), seed=5)  # the labels play no part
    x, _ = given(subject)
    w, generator = trainable(MLP), torch.Generator().manual_seed(5)
    squares = {name: torch.zeros_like(value) for name, value in w.items()}
    for number in range(SAMPLES):
        logits = mlp(w, x[number : number + 1])
        target = torch.multinomial(logits.detach().double().softmax(dim=-1), 1, generator=generator)
        for name, g in gradients(w, functional.cross_entropy(logits, target[0])).items():
            squares[name] += g.square() / SAMPLES
    products = {name: (w[name].detach().square() * squares[name] / 2) for name in w}
    scores = score_on_data(subject, "obd").channels
    for layer, following in (("fc1", "fc2"), ("fc2", "fc3")):
        np.testing.assert_allclose(
            scores[layer], channel_sums(products, layer, following), rtol=1e-4, atol=1e-10
        )


def test_snip_is_a_share_on_the_first_batch():
    subject = subject_of(MLP, class_numbers(4))
    x, labels = given(subject)
    w = trainable(MLP)
    g = gradients(w, functional.cross_entropy(mlp(w, x[:BATCH]), labels[:BATCH]))
    products = {name: (w[name] * g[name]).abs().detach() for name in w}
    sums = {a: channel_sums(products, a, b) for a, b in (("fc1", "fc2"), ("fc2", "fc3"))}
    whole = sum(float(values.sum()) for values in sums.values())
    for layer, values in score_on_data(subject, "snip").channels.items():
        np.testing.assert_allclose(values, sums[layer] / whole, rtol=1e-4, atol=1e-9)


GRADIENT_SCORES = ("taylor", "taylor_activation", "fisher", "obd", "snip")


@pytest.mark.parametrize("score", GRADIENT_SCORES)
def test_a_fixed_batch_gives_what_a_symbolic_one_gives(score):
    fixed = onnx.ModelProto.FromString(MLP.SerializeToString())
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = BATCH
    labels = class_numbers(4, 8)
    expected = score_on_data(subject_of(MLP, labels, samples=8), score).channels
    found = score_on_data(subject_of(fixed, labels, samples=8), score).channels
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("score", GRADIENT_SCORES)
@pytest.mark.parametrize(
    "proto", [MLP, ATTENTION, small_models.residual_net(width=4)], ids=["mlp", "attention", "conv"]
)
def test_without_labels_every_open_group_has_figures(score, proto):
    subject = subject_of(proto)
    scores = score_on_data(subject, score)
    assert scores.channels.keys() == {group.name for group in subject.groups}
    assert not scores.unmeasured
    for values in scores.channels.values():
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() > 0
    again = score_on_data(subject, score).channels
    assert all(np.array_equal(values, again[name]) for name, values in scores.channels.items())
    assert bool(notes_on_labels(score, subject.data)) == (score != "obd")


def test_a_channel_that_is_read_by_nothing_alive_scores_zero():
    proto = onnx.ModelProto.FromString(MLP.SerializeToString())
    for each in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(each).copy()
        if each.name == "fc2.weight":
            array[:, 2] = 0
        each.CopyFrom(onnx.numpy_helper.from_array(array, each.name))
    subject = subject_of(proto)
    for score in GRADIENT_SCORES:
        values = score_on_data(subject, score).channels["fc1"]
        assert values[2] == 0
        assert np.delete(values, 2).max() > 0


def test_weights_that_are_integers_have_no_gradient():
    model = graph(
        """
        a = Cast<to=1>(w1)
        h = MatMul(x, a)
        r = Relu(h)
        y = MatMul(r, w2)
        """,
        inputs="float[N,4] x",
        outputs="float[N,2] y",
        constants={"w1": integers(4, 6), "w2": (6, 2)},
    )
    subject = subject_of(ir.to_proto(model))
    scores = score_on_data(subject, "taylor")
    assert not scores.channels
    assert all("prune before quantizing" in reason for reason in scores.unmeasured.values())


def test_an_output_that_is_not_finite_is_an_error():
    proto = graph(
        "h = MatMul(x, w1)\n r = Relu(h)\n z = MatMul(r, w2)\n y = Log(z)",
        inputs="float[N,4] x",
        outputs="float[N,2] y",
        constants={"w1": (4, 6), "w2": np.zeros((6, 2), np.float32)},
    )
    with pytest.raises(DataError, match="output 'y' is not finite on this data"):
        score_on_data(subject_of(ir.to_proto(proto)), "taylor")


@pytest.mark.parametrize("score", GRADIENT_SCORES)
def test_predictions_without_doubt_are_told_apart_by_nothing(score):
    proto = onnx.ModelProto.FromString(MLP.SerializeToString())
    for each in proto.graph.initializer:
        if each.name == "fc3.bias":
            each.CopyFrom(onnx.numpy_helper.from_array(np.array([1e4, 0, 0, 0], np.float32), each.name))
    with pytest.raises(DataError, match="the loss of the model is flat on this data"):
        score_on_data(subject_of(proto), score)
    if score != "obd":
        labelled = score_on_data(subject_of(proto, class_numbers(4)), score)
        assert labelled.channels["fc1"].max() > 0


def test_labels_that_fit_no_output_are_refused():
    with pytest.raises(DataError, match="fit none of the outputs"):
        score_on_data(subject_of(MLP, np.ones((SAMPLES, 3), np.float32)), "taylor")
    with pytest.raises(DataError, match="labels range from 0 to 9"):
        score_on_data(subject_of(MLP, np.arange(SAMPLES)), "taylor")
