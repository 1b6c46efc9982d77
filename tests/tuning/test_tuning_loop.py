"""Runs: what they learn, what they hold, when they stop, and that they go on bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from tuning_models import classifier, filled, three_classes, weights_of  # noqa: E402

from onnxprune.data import Dataset  # noqa: E402
from onnxprune.errors import DataError, ModelError, OutputError, TuningError, UsageError  # noqa: E402
from onnxprune.model.io import save  # noqa: E402
from onnxprune.tuning import Tuning  # noqa: E402
from onnxprune.tuning.checkpoint import claimed  # noqa: E402
from onnxprune.tuning.checkpoint import load as load_checkpoint  # noqa: E402
from onnxprune.tuning.checkpoint import save as save_checkpoint  # noqa: E402
from onnxprune.tuning.loop import tune  # noqa: E402
from onnxprune.types import Mask  # noqa: E402

SHORT = Tuning(steps=12, batch=8, learning_rate=0.05, evaluate_every=3)


def bits(model):
    return {name: array.tobytes() for name, array in weights_of(model).items()}


def some_masks(seed=0):
    random = np.random.default_rng(seed)
    return {name: Mask.pack(random.random(shape) > 0.5) for name, shape in (("w1", (8, 6)), ("w2", (8, 3)))}


class Narrowing:
    """A control with a state of its own: it narrows by a score that it adds up, and draws random numbers."""

    def __init__(self, until=8):
        self.until = until
        self.sums = {}
        self.gone = 0

    def start(self, steps, module, held):
        self.sums = {name: np.zeros(tuple(p.shape)) for name, p in module.trained.items() if p.dim() == 2}

    def after_backward(self, step, module):
        for name in self.sums:
            gradient = module.trained[name].grad
            self.sums[name] += (module.trained[name].detach() * gradient).numpy().astype(np.float64) ** 2

    def after_step(self, step, module, held):
        if step % 2 == 0 and step <= self.until:
            masks = {}
            for name, sums in self.sums.items():
                noisy = sums * torch.rand(sums.shape).numpy()
                masks[name] = noisy > np.quantile(noisy, 0.08 * step)
            held.narrow(masks)
            self.gone += 1

    def settled(self, step):
        return step >= self.until

    def settings(self):
        return {"until": self.until}

    def state(self):
        return {"sums": self.sums, "gone": self.gone}

    def load(self, state):
        self.sums, self.gone = state["sums"], state["gone"]


class Stop(Exception):
    """Stands for a process that is killed."""


def stopping_at(step):
    def progress(standing):
        if standing.step == step:
            raise Stop

    return progress


def test_labels_are_learned_and_the_model_given_is_not_changed():
    model, before = classifier(), bits(classifier())
    tuned = tune(model, three_classes(), replace(SHORT, steps=60), validation=three_classes(60, 1))
    assert tuned.metric == "top1"
    assert tuned.history[0]["step"] == 0
    best = max(row["top1"] for row in tuned.history)
    assert best > tuned.history[0]["top1"] + 0.3
    assert bits(model) == before
    assert set(tuned.changed) == {"w1", "b1", "w2", "b2"}
    assert all(bits(tuned.model)[name] != before[name] for name in before)


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_does_not():
    one, same, other = (
        tune(classifier(), three_classes(), replace(SHORT, seed=seed)).model for seed in (0, 0, 1)
    )
    assert bits(one) == bits(same)
    assert bits(one) != bits(other)


def test_the_random_numbers_of_the_caller_go_on_as_if_nothing_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tune(classifier(), three_classes(), SHORT)
    assert torch.equal(torch.rand(3), expected)


def test_the_loss_goes_by_the_original_without_labels():
    original = tune(classifier(), three_classes(), replace(SHORT, steps=100)).model
    unlabelled = Dataset.from_arrays({"x": three_classes().arrays["x"]})
    for model, metric in ((original, "divergence"), (classifier(softmax=True), "agreement")):
        teacher = model
        tuned = tune(
            classifier(7, softmax=metric == "agreement"),
            unlabelled,
            replace(SHORT, steps=80, match=("hidden",)),
            teacher=teacher,
            validation=Dataset.from_arrays({"x": three_classes(60, 1).arrays["x"]}),
        )
        assert tuned.metric == metric
        assert tuned.decided["weight of the original"] == 1.0
        assert "kl" in tuned.decided["output y against the original's"] or metric == "divergence"
        assert tuned.decided["matched inner values"] == "hidden"
        assert tuned.history[-1]["validation loss"] < tuned.history[0]["validation loss"] / 2


def test_labels_and_the_original_share_the_loss():
    tuned = tune(classifier(1), three_classes(), replace(SHORT, distil=0.25), teacher=classifier(2))
    assert tuned.decided["weight of labels"] == 0.75
    assert "kl" in tuned.decided["output y against the original's"], "labels say that the output is classes"


def test_values_of_another_shape_are_not_matched_and_that_is_said():
    small = filled(
        """<ir_version: 9, opset_import: ["" : 17]> f (float[N, 6] x) => (float[N, 3] y)
        <float[4, 6] w1, float[4] b1, float[4, 3] w2, float[3] b2>
        { hidden = Gemm<transB = 1>(x, w1, b1) active = Relu(hidden) y = Gemm(active, w2, b2) }"""
    )
    tuned = tune(small, three_classes(), replace(SHORT, match=("hidden", "nowhere")), teacher=classifier())
    reasons = {note.name: note.reason for note in tuned.notes}
    assert "[64, 4], in the original [64, 8]" in reasons["hidden"]
    assert "no value of that name" in reasons["nowhere"]


def test_the_best_weights_are_kept_and_patience_ends_a_run(tmp_path):
    settings = Tuning(steps=200, batch=8, learning_rate=2.0, clip=None, evaluate_every=2, patience=3)
    tuned = tune(classifier(), three_classes(), settings, validation=three_classes(60, 1))
    figures = [row["top1"] for row in tuned.history]
    assert tuned.steps_done < 200
    rows = {row["step"]: row for row in tuned.history}
    assert rows[tuned.best_step]["top1"] == max(figures)
    assert tuned.steps_done - tuned.best_step == 6, "three looks of two steps"
    run = {"validation": three_classes(60, 1), "checkpoint": tmp_path / "run"}
    with pytest.raises(Stop):
        tune(
            classifier(), three_classes(), settings, **run,
            progress=stopping_at(tuned.steps_done - 1),
        )  # fmt: skip
    resumed = tune(classifier(), three_classes(), settings, **run, resume=True)
    assert (resumed.best_step, resumed.steps_done) == (tuned.best_step, tuned.steps_done)
    assert bits(resumed.model) == bits(tuned.model), "the best weights are part of a checkpoint"
    again = tune(tuned.model, three_classes(), replace(settings, steps=1), validation=three_classes(60, 1))
    assert again.history[0]["top1"] == max(figures), "the model has the weights of the best step"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_masks_hold_through_a_run_and_nothing_else_is_zero(optimizer, precision):
    masks = some_masks()
    settings = replace(
        SHORT, optimizer=optimizer, weight_decay=0.1, precision=precision, accumulate=2,
        nesterov=optimizer == "sgd",
    )  # fmt: skip
    tuned = tune(classifier(), three_classes(), settings, masks=masks, validation=three_classes(30, 1))
    for name, mask in masks.items():
        weights = weights_of(tuned.model)[name]
        assert ((weights != 0) == mask.unpack()).all()
        assert (weights.view(np.int32)[~mask.unpack()] == 0).all(), "+0.0, bit for bit"
    assert tuned.masks.keys() == masks.keys()
    assert tuned.history[-1]["sparsity"] == sum(m.size - m.kept for m in masks.values()) / (48 + 24 + 8 + 3)


def test_a_masked_weight_is_never_minus_zero():
    """Where weight decay takes more than all of a weight, its sign turns: also that of a zero."""
    settings = Tuning(
        steps=3, batch=8, optimizer="adamw", learning_rate=3.0, weight_decay=0.5, warm_up=0.0,
        learning_rate_schedule="constant",
    )  # fmt: skip
    tuned = tune(classifier(), three_classes(), settings, masks=some_masks())
    for name, mask in some_masks().items():
        assert (weights_of(tuned.model)[name].view(np.int32)[~mask.unpack()] == 0).all()


@pytest.mark.parametrize("says", ["the truth", "always settled"])
def test_a_control_narrows_and_the_best_weights_are_those_of_the_last_masks(says):
    control = Narrowing()
    if says == "always settled":
        control.settled = lambda _: True
    tuned = tune(
        classifier(), three_classes(), replace(SHORT, evaluate_every=1, learning_rate=1e-6),
        control=control, validation=three_classes(30, 1),
    )  # fmt: skip
    assert tuned.best_step >= 8
    for name in ("w1", "w2"):
        zeros = weights_of(tuned.model)[name] == 0
        assert (zeros == ~tuned.masks[name].unpack()).all()
        assert zeros.mean() >= 0.6, "the last of the masks alone"


def test_patience_waits_until_the_masks_are_settled():
    settings = replace(SHORT, evaluate_every=1, patience=1, learning_rate=1e-30)
    tuned = tune(
        classifier(), three_classes(), settings, control=Narrowing(), validation=three_classes(30, 1)
    )
    assert tuned.history[-1]["sparsity"] > 0.5


def test_accumulated_batches_are_one_larger_batch():
    plain = Tuning(steps=5, batch=16, learning_rate=0.05, optimizer="sgd", clip=None)
    whole = tune(classifier(), three_classes(), plain).model
    parts = tune(classifier(), three_classes(), replace(plain, batch=4, accumulate=4)).model
    for name, array in weights_of(whole).items():
        np.testing.assert_allclose(weights_of(parts)[name], array, rtol=0, atol=1e-6)


def test_a_fixed_batch_is_taken_as_it_is_and_every_sample_counts():
    free = tune(classifier(), three_classes(30), replace(SHORT, batch=4), validation=three_classes(10, 1))
    fixed = tune(
        classifier(batch="4"), three_classes(30), replace(SHORT, batch=7), validation=three_classes(10, 1)
    )
    assert [note.name for note in fixed.notes] == ["batch"]
    for name, array in weights_of(free.model).items():
        np.testing.assert_allclose(weights_of(fixed.model)[name], array, rtol=0, atol=1e-5)
    looks = [[row["validation loss"] for row in tuned.history] for tuned in (free, fixed)]
    np.testing.assert_allclose(*looks, rtol=1e-5)


def test_a_fixed_batch_of_one_makes_steps_of_many():
    free = tune(classifier(), three_classes(), replace(SHORT, batch=8, optimizer="sgd"))
    fixed = tune(classifier(batch="1"), three_classes(), replace(SHORT, batch=8, optimizer="sgd"))
    assert fixed.batch == 8
    assert "8 runs make up a step" in fixed.notes[0].reason
    for name, array in weights_of(free.model).items():
        np.testing.assert_allclose(weights_of(fixed.model)[name], array, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("label", "named"),
    [(None, "has no labels"), ([0, 1, 3], "range from 0 to 3"), ([[0], [1], [2]], "labels are")],
)
def test_validation_samples_have_labels_that_fit(label, named):
    arrays = {"x": three_classes(3).arrays["x"], **({} if label is None else {"label": np.array(label)})}
    with pytest.raises(DataError, match=named):
        tune(classifier(), three_classes(), SHORT, validation=Dataset.from_arrays(arrays))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_of_any_integer_type(dtype):
    data = three_classes()
    typed = Dataset.from_arrays({"x": data.arrays["x"], "label": data.labels.astype(dtype)})
    assert bits(tune(classifier(), typed, SHORT).model) == bits(tune(classifier(), data, SHORT).model)


def test_a_loss_that_is_no_number_any_more_ends_the_run_in_one_line(tmp_path):
    settings = Tuning(steps=50, batch=8, learning_rate=1e30, optimizer="sgd", clip=None, warm_up=0.0)
    with pytest.raises(TuningError, match=r"at step \d+ .*lower learning rate, such as 1e\+29") as caught:
        tune(classifier(), three_classes(), settings)
    assert "\n" not in str(caught.value)


MODEL_WITH_DROPOUT = """
<ir_version: 9, opset_import: ["" : 17]>
f (float[N, 6] x) => (float[N, 3] y) <float[8, 6] w1, float[8, 3] w2>
{
    hidden = Gemm<transB = 1>(x, w1)
    rate = Constant<value = float {0.5}>()
    noise = RandomUniformLike<dtype = 1>(hidden)
    noisy = Mul(hidden, noise)
    y = Gemm(noisy, w2)
}
"""


@pytest.mark.parametrize("stop", range(1, 13))
def test_a_run_that_stops_at_any_step_goes_on_to_the_same_bits(tmp_path, stop):
    def run(**more):
        return tune(
            classifier(), three_classes(), replace(SHORT, precision="bfloat16", checkpoint_every=2),
            validation=three_classes(30, 1), masks=some_masks(), control=Narrowing(), **more,
        )  # fmt: skip

    whole = run()
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        run(checkpoint=folder, progress=stopping_at(stop))
    resumed = run(checkpoint=folder, resume=True)
    assert bits(resumed.model) == bits(whole.model)
    assert resumed.best_step == whole.best_step
    assert resumed.history == whole.history


def test_random_numbers_of_the_model_are_the_same_after_a_stop(tmp_path):
    model = filled(MODEL_WITH_DROPOUT)

    def run(**more):
        return tune(model, three_classes(), replace(SHORT, checkpoint_every=1), **more)

    whole = run()
    with pytest.raises(Stop):
        run(checkpoint=tmp_path / "run", progress=stopping_at(5))
    assert bits(run(checkpoint=tmp_path / "run", resume=True).model) == bits(whole.model)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"settings": replace(SHORT, learning_rate=0.1)}, "learning_rate 0.05, now it is 0.1"),
        ({"settings": replace(SHORT, seed=3)}, "seed 0, now it is 3"),
        ({"model": classifier(5)}, "model"),
        ({"data": three_classes(90)}, "data"),
        ({"masks": some_masks(4)}, "masks"),
        ({"validation": three_classes(21)}, "validation samples"),
        ({"control": Narrowing(until=4)}, "schedule"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line(tmp_path, changed, named):
    folder = tmp_path / "run"

    def run(**more):
        given = {
            "model": classifier(), "data": three_classes(), "settings": SHORT, "control": Narrowing(),
            **more,
        }  # fmt: skip
        model, data, settings = given.pop("model"), given.pop("data"), given.pop("settings")
        return tune(model, data, settings, checkpoint=folder, **given)

    with pytest.raises(Stop):
        run(progress=stopping_at(4))
    with pytest.raises(TuningError, match=named) as caught:
        run(resume=True, **changed)
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="--resume"):
        run()


def test_weights_are_read_for_a_digest_only_where_there_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxprune.tuning.loop.identity", lambda *_: pytest.fail("digested"))
    tune(classifier(), three_classes(), SHORT)
    with pytest.raises(pytest.fail.Exception, match="digested"):
        tune(classifier(), three_classes(), SHORT, checkpoint=tmp_path / "state")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "run"
    tune(classifier(), three_classes(), SHORT, checkpoint=folder)
    path = folder / "state.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TuningError, match="no sound checkpoint"):
        tune(classifier(), three_classes(), SHORT, checkpoint=folder, resume=True)


def test_a_checkpoint_with_any_byte_changed_is_refused_or_says_the_same(tmp_path):
    """There are bytes that mean nothing: padding, and times."""
    run = {"seed": 1, "data": "digest"}
    state = {
        "weights": {"w": np.arange(400, dtype=np.float32)},
        "step": 7,
        "best": (1.5, None),
        "mask": some_masks(),
    }
    save_checkpoint(tmp_path, run, state)
    path = tmp_path / "state.pt"
    good, whole = path.read_bytes(), repr(load_checkpoint(tmp_path, run))
    refused = 0
    for place in range(0, len(good), 11):
        changed = bytearray(good)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        try:
            assert repr(load_checkpoint(tmp_path, run)) == whole, place
        except TuningError:
            refused += 1
    assert refused > 100, "of several hundred"


def test_two_runs_do_not_share_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with claimed(folder):
        with pytest.raises(OutputError, match="another run keeps its checkpoints here") as caught:
            tune(classifier(), three_classes(), SHORT, checkpoint=folder)
        assert "\n" not in str(caught.value)
    tune(classifier(), three_classes(), SHORT, checkpoint=folder)


def test_a_checkpoint_runs_no_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = tmp_path / "run"
    folder.mkdir()
    for contents in (pickle.dumps(Evil()), None):
        if contents is None:
            torch.save({"format": 1, "run": Evil(), "state": {}}, folder / "state.pt")
        else:
            (folder / "state.pt").write_bytes(contents)
        with pytest.raises(TuningError, match="no sound checkpoint"):
            tune(classifier(), three_classes(), SHORT, checkpoint=folder, resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_finished_run_is_taken_from_its_checkpoint(tmp_path):
    run = {"checkpoint": tmp_path / "run", "validation": three_classes(30, 1)}
    first = tune(classifier(), three_classes(), SHORT, **run)
    again = tune(classifier(), three_classes(), SHORT, **run, resume=True, progress=stopping_at(12))
    assert bits(first.model) == bits(again.model)


@pytest.mark.parametrize(
    ("settings", "more", "error", "named"),
    [
        (replace(SHORT, distil=0.5), {}, UsageError, "--teacher"),
        (replace(SHORT, loss="none"), {}, UsageError, "--teacher"),
        (replace(SHORT, loss="mse"), {}, DataError, "fit none of the outputs"),
        (replace(SHORT, loss="no_such_module_here:f"), {}, DataError, "no_such_module_here"),
        (replace(SHORT, distil=0.5, loss="none"), {"teacher": classifier()}, UsageError, "there are none"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(settings, more, error, named):
    with pytest.raises(error, match=named) as caught:
        tune(classifier(), three_classes(), settings, **more)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_classes_is_found_wherever_it_is():
    data = three_classes()
    labels = data.labels.copy()
    labels[-1] = 3
    with pytest.raises(DataError, match="range from 0 to 3"):
        tune(classifier(), Dataset.from_arrays({"x": data.arrays["x"], "label": labels}), SHORT)


def test_a_model_without_weights_is_refused():
    text = '<ir_version: 9, opset_import: ["" : 17]> f (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }'
    with pytest.raises(ModelError, match="nothing in this model can be trained"):
        tune(filled(text), three_classes(), SHORT)


def test_a_loss_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        textwrap.dedent(
            """
            import torch
            def good(outputs, labels):
                return torch.nn.functional.cross_entropy(outputs["y"], labels, label_smoothing=0.1)
            def bad(outputs, labels):
                return outputs["y"]
            def broken(outputs, labels):
                raise KeyError("nothing there")
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    tuned = tune(
        classifier(), three_classes(), replace(SHORT, steps=30, loss="my_losses:good"),
        validation=three_classes(30, 1),
    )  # fmt: skip
    assert tuned.metric == "loss"
    assert tuned.history[-1]["validation loss"] < tuned.history[0]["validation loss"]
    for name, message in (("bad", "one element"), ("broken", "KeyError")):
        with pytest.raises(DataError, match=message):
            tune(classifier(), three_classes(), replace(SHORT, loss=f"my_losses:{name}"))


HALF = """
<ir_version: 9, opset_import: ["" : 17]>
f (float16[N, 6] x) => (float16[N, 3] y) <float16[6, 3] w> { y = MatMul(x, w) }
"""


def test_float16_weights_are_tuned_in_float32_and_stored_as_they_were():
    import onnx

    proto = onnx.parser.parse_model(HALF)
    array = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float16)
    array[0] = 0
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    del proto.graph.value_info[:]
    data = three_classes()
    half = Dataset.from_arrays({"x": data.arrays["x"].astype(np.float16), "label": data.labels})
    tuned = tune(
        ir.from_proto(proto), half, replace(SHORT, learning_rate=1e-3, optimizer="sgd"),
        masks={"w": Mask.pack(array != 0)},
    )  # fmt: skip
    weights = weights_of(tuned.model)["w"]
    assert weights.dtype == np.float16
    assert (weights[0].view(np.int16) == 0).all()
    assert (weights[1:] != array[1:]).any()


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from tuning_models import three_classes
from onnxprune.model.io import load, save
from onnxprune.tuning import Tuning
from onnxprune.tuning.loop import tune
settings = Tuning(steps=60, batch=8, learning_rate=0.05, evaluate_every=5, checkpoint_every=1)
folder, out = Path(sys.argv[1]), sys.argv[2]
def say(standing):
    print(standing.step, flush=True)
tuned = tune(load(sys.argv[3]), three_classes(), settings, validation=three_classes(30, 1),
             checkpoint=folder, resume=True, progress=say)
save(tuned.model, out)
"""


@pytest.mark.long
def test_a_process_that_is_killed_goes_on_to_the_same_file(tmp_path):
    tests = Path(__file__).resolve().parents[1]
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(paths=[str(tests.parent), str(tests)]))
    save(classifier(), tmp_path / "model.onnx")

    def start(folder, out):
        return subprocess.Popen(
            [sys.executable, script, folder, out, tmp_path / "model.onnx"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    with start(tmp_path / "whole", tmp_path / "whole.onnx") as process:
        assert process.communicate()[1] is None
        assert process.returncode == 0
    for kill_at in (3, 31):  # once in the beginning, once when it has gone on
        with start(tmp_path / "killed", tmp_path / "killed.onnx") as process:
            for line in process.stdout:
                if int(line) >= kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
            process.wait()
            assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed.onnx").exists()
    with start(tmp_path / "killed", tmp_path / "killed.onnx") as process:
        steps = [int(line) for line in process.stdout]
    assert process.returncode == 0
    assert steps[0] > 30, "it went on where it was"
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
