"""Where a trial is run: a model without some of its channels or weights, on the data, beside the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis, analyze
from onnxprune.calibration.activations import USUAL, Running, feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.data_files import StoredData, store
from onnxprune.errors import DataError, RuntimeFailure
from onnxprune.measure.metrics import METRICS
from onnxprune.messages import one_line, quoted
from onnxprune.model.copies import copy_of
from onnxprune.model.float32 import in_float32
from onnxprune.ops.sums import Sums
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.fold import apply_folds, plan_folds
from onnxprune.rewrite.mask import apply_masks
from onnxprune.runtime import Session, open_session
from onnxprune.sensitivity.losses import Loss
from onnxprune.sensitivity.references import References
from onnxprune.sensitivity.trials import Outcome, Trial
from onnxprune.types import IntArray
from onnxprune.workers import Files, check_stop
from onnxprune.workers.models import ModelName


class Maker(Protocol):
    """What makes the models of trials.

    Attributes:
        given: the original, whose types samples have.
    """

    given: ir.Model

    @property
    def model(self) -> ir.Model:
        """The original in float32."""

    def without(self, trial: Trial) -> ir.Model:
        """Return a copy in float32 without what a trial removes."""


class Cutter:
    """Models that are smaller, cut as `prune` cuts them; trials on them run faster than the original.

    Args:
        analysis: of the original.
        sums: the constants in it.
    """

    def __init__(self, analysis: Analysis, sums: Sums) -> None:
        self.given = analysis.given
        self._analysis = analysis
        self._sums = sums

    @property
    def model(self) -> ir.Model:
        """The original in float32."""
        return in_float32(self._analysis.model)

    def without(self, trial: Trial) -> ir.Model:
        """Return a copy in float32 without the channels of a trial."""
        # a trial of channels has some
        return self._cut({trial.subject: trial.channels}, in_float32)  # type: ignore[dict-item]

    def cut(self, removed: Mapping[str, IntArray]) -> ir.Model:
        """Return a copy in the types of the original without some channels, by group name."""
        return self._cut(removed, lambda model: model)

    def _cut(self, removed: Mapping[str, IntArray], convert: Callable[[ir.Model], ir.Model]) -> ir.Model:
        gone = self._analysis.removed_labels(removed)
        folds = plan_folds(self._sums, gone)
        smaller = convert(cut(self._analysis.model, self._analysis.channels, gone))
        apply_folds(smaller, self._sums, folds, gone)
        return smaller


class Masker:
    """Models in which weights of one tensor are zero."""

    def __init__(self, model: ir.Model) -> None:
        self.given = model
        self._model = model

    @property
    def model(self) -> ir.Model:
        """The original in float32."""
        return in_float32(self._model)

    def without(self, trial: Trial) -> ir.Model:
        """Return a copy in float32 with the zeros of a trial."""
        copy = copy_of(self._model)
        if trial.mask is not None:
            apply_masks(copy, {trial.subject: trial.mask})
        return in_float32(copy)


@dataclass(frozen=True, slots=True)
class Question:
    """What every trial is asked, the same for all.

    Attributes:
        data: the samples.
        loss: what is measured.
        references: the outputs of the original, in the batches of ``running``.
        running: batches and threads of every model.
    """

    data: Dataset
    loss: Loss
    references: References
    running: Running = USUAL


class Workbench:
    """Runs trials one after the other."""

    def __init__(self, maker: Maker, question: Question) -> None:
        self._maker = maker
        self._question = question
        self._given = maker.given

    def __call__(self, trial: Trial) -> Outcome:
        """Return what a trial finds; one whose model can't be run, or is not finite, fails with a reason."""
        name = self._question.loss.name
        try:
            model = self._maker.without(trial)
            label = f"the model without {trial.removed} of {quoted(trial.subject)}"
            session = open_session(model, threads=self._question.running.threads, label=label)
            loss, top1 = self._judge(session)
        except (RuntimeFailure, DataError) as error:
            return Outcome(name, None, failure=one_line(error))
        return Outcome(name, loss, top1)

    def _judge(self, session: Session) -> tuple[float, float | None]:
        judged = _Judged(self._question)
        batches = feeds_by_batch(self._given, self._question.data, batch=self._question.running.batch)
        for number, (_, feeds) in enumerate(batches):
            check_stop()
            results = session.run(feeds, self._question.loss.outputs)
            for name, output in results.items():
                if not np.isfinite(output).all():
                    raise DataError(f"output {quoted(name)} is not finite without them")
            judged.add(number, list(results.values()))
        return judged.result()


def judge_original(question: Question) -> Outcome:
    """Return what the original itself is worth, from its stored outputs."""
    judged, references = _Judged(question), question.references
    for number in range(len(references.parts)):
        outputs = references.batch(number)
        judged.add(number, [outputs[place] for place in question.loss.places])
    return Outcome(question.loss.name, *judged.result())


class _Judged:
    """The loss and the share of right answers of one model, collected batch by batch."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._tally = question.loss.start()
        self._right = 0.0

    def add(self, number: int, outputs: Sequence[np.ndarray]) -> None:
        data, loss, references = self._question.data, self._question.loss, self._question.references
        labels = None if data.labels is None else data.labels[references.parts[number]]
        whole = references.batch(number)
        self._tally.add(outputs, [whole[place] for place in loss.places], labels)
        if loss.classes and labels is not None:
            self._right += float(METRICS.get("top1").per_sample(outputs[0], labels).sum())

    def result(self) -> tuple[float, float | None]:
        samples = self._question.references.parts[-1].stop
        return self._tally.result(), self._right / samples if self._question.loss.classes else None


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question whose arrays lie in two folders.

    Attributes:
        data: the samples.
        question: the same without them.
    """

    data: StoredData
    question: Question

    def read(self, samples: Path, outputs: Path) -> Question:
        """Return the question, from the folders of its samples and of its references."""
        references = replace(self.question.references, folder=outputs)
        return replace(self.question, data=self.data.read(samples), references=references)


def stored(question: Question, folder: Path) -> tuple[Files, Files, StoredQuestion]:
    """Write the samples of a question into an empty folder; return these, its references, and the rest."""
    folder.mkdir()
    data = store(question.data, folder)
    nothing = Dataset({}, None, None, "", "")
    rest = replace(question, data=nothing)
    return Files.of_folder(folder), Files.of_folder(question.references.folder), StoredQuestion(data, rest)


def rebuild(
    files: Path,
    name: ModelName,
    options: Mapping[str, Any] | None,
    samples: Path,
    outputs: Path,
    question: StoredQuestion,
) -> Workbench:
    """Return a workbench in another process.

    Args:
        files: folder of the model.
        name: of the model in it.
        options: of its analysis; None if masks are tried.
        samples: folder of the samples.
        outputs: folder of the references.
        question: what every trial is asked.
    """
    model, asked = name.load(files), question.read(samples, outputs)
    if options is None:
        return Workbench(Masker(model), asked)
    analysis = analyze(model, **options)
    return Workbench(Cutter(analysis, Sums(analysis.model.graph, analysis.channels)), asked)
