from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxprune.errors import DataError  # noqa: E402
from onnxprune.executor.losses import OwnLoss, choose_label_loss, label_loss  # noqa: E402
from onnxprune.sensitivity.losses import log_probabilities  # noqa: E402


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_class_numbers_are_judged_by_cross_entropy():
    outputs, labels = {"pooled": drawn(6, 9), "logits": drawn(6, 4, 5)}, torch.arange(24).reshape(6, 4) % 5
    loss = choose_label_loss(outputs, labels)
    assert (loss.name, loss.output, loss.probabilities) == ("cross_entropy", "logits", False)
    logs = log_probabilities(outputs["logits"].numpy(), False)
    expected = -np.take_along_axis(logs, labels.numpy()[..., None], axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(loss.per_sample(outputs, labels), expected)
    np.testing.assert_allclose(label_loss(outputs, labels), expected.mean())


def test_a_softmax_is_not_taken_twice():
    logits, labels = drawn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    plain, ready = {"y": logits}, {"y": logits.softmax(dim=-1)}
    assert choose_label_loss(ready, labels).probabilities
    np.testing.assert_allclose(label_loss(ready, labels), label_loss(plain, labels))


def test_numbers_of_the_outputs_shape_are_judged_by_their_squared_error():
    outputs, labels = {"y": drawn(4, 2, 3)}, drawn(4, 2, 3, seed=1).float()
    loss = choose_label_loss(outputs, labels)
    assert loss.name == "mse"
    expected = ((outputs["y"].numpy() - labels.numpy()) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(loss.per_sample(outputs, labels), expected)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 3]), "labels range from 0 to 3; output 'y' has classes 0 to 2"),
        (torch.tensor([-1, 0]), "labels range from -1 to 0"),
        (torch.tensor([0.5, 1.0]), r"labels are float32\[2\], and fit none of the outputs \('y' \[2, 3\]\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(DataError, match=f"d.npz: {said}"):
        choose_label_loss({"y": drawn(2, 3)}, labels, source="d.npz")


def test_the_likelihood_of_drawn_classes_has_the_fisher_information_as_its_mean_square():
    logits = drawn(1, 4).requires_grad_()
    draw, total, count = generator(), torch.zeros(4, 4, dtype=torch.float64), 20_000
    own = OwnLoss.of({"y": logits})
    targets = [own.drawn({"y": logits}, draw) for _ in range(count)]
    assert {int(target["y"]) for target in targets} == {0, 1, 2, 3}
    for number in range(4):
        (gradient,) = torch.autograd.grad(
            own.per_sample({"y": logits}, {"y": torch.tensor([number])}, 1).sum(), logits
        )
        share = sum(int(target["y"]) == number for target in targets) / count
        total += share * gradient.T @ gradient
    p = logits.detach().softmax(dim=-1)[0]
    np.testing.assert_allclose(total, torch.diag(p) - torch.outer(p, p), atol=0.01)


def test_drawn_numbers_lie_about_the_output_as_far_as_the_output_varies():
    output = 5 + 3 * drawn(50, 2, 20, 20)
    own = OwnLoss.of({"y": output})
    assert own.classes == {"y": False}
    noise = own.drawn({"y": output}, generator())["y"] - output
    assert abs(float(noise.std()) - 3) < 0.05
    assert abs(float(noise.mean())) < 0.05
    losses = own.per_sample({"y": output}, {"y": output + noise}, 50)
    np.testing.assert_allclose(losses, ((noise / own.deviations["y"]) ** 2 / 2).mean(dim=(1, 2, 3)))


def test_own_predictions_have_a_gradient():
    for shape in ((3, 7), (3, 5, 7), (3, 2, 4, 4), (3,)):
        output = drawn(*shape).requires_grad_()
        own = OwnLoss.of({"y": output})
        targets = own.predicted({"y": output}, generator())
        if own.classes["y"]:
            assert torch.equal(targets["y"], output.argmax(dim=-1))
        own.per_sample({"y": output}, targets, 3).sum().backward()
        assert output.grad is not None
        assert float(output.grad.abs().max()) > 1e-3


def test_the_seed_decides_what_is_drawn():
    outputs = {"y": drawn(8, 6), "z": drawn(8, 2, 2, 2)}
    own = OwnLoss.of(outputs)
    first, again, other = (own.drawn(outputs, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in outputs)
    assert not any(torch.equal(first[name], other[name]) for name in outputs)


def test_a_model_without_float_outputs_has_no_likelihood():
    with pytest.raises(DataError, match="no output of the model holds floats"):
        OwnLoss.of({"y": torch.tensor([1, 2])})


def test_an_output_without_an_axis_of_samples_is_refused():
    own = OwnLoss.of({"y": drawn(5, 4)})
    with pytest.raises(DataError, match=r"\[5\] over 2 samples"):
        own.per_sample({"y": drawn(5, 4)}, {"y": torch.zeros(5, dtype=torch.long)}, 2)
