"""One model -> a family of smaller ones: decided from the same figures, each proved and written by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir

from onnxprune.errors import LimitMissed, NothingToPrune, OutputError, UsageError
from onnxprune.messages import visible
from onnxprune.model.atomic import output_errors
from onnxprune.pipeline import options_of_prune, save_pruned
from onnxprune.planning.latency.wish import parse_target
from onnxprune.planning.recipes import DEAD, STRUCTURED
from onnxprune.planning.rounds import runs_of
from onnxprune.planning.watch import Watch
from onnxprune.pruners import pruner_for
from onnxprune.pruning import PruneResult
from onnxprune.registry import did_you_mean
from onnxprune.types import Report
from onnxprune.wishes import prepared

#: What targets may be of, and the option of `onnxprune.prune` that says the same of a single model.
TARGETS_OF = {
    "latency": "target_latency",
    "macs": "target_macs",
    "params": "target_params",
    "size": "target_size",
    "amount": "amount",
}

Target: TypeAlias = float | str


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a family.

    Attributes:
        name: of the target, such as ``macs-0.5``; no two members share it.
        target: as it was given.
        result: what `onnxprune.prune` gives for this target.
    """

    name: str
    target: Target
    result: PruneResult


@dataclass(frozen=True, slots=True)
class Missed:
    """A target that could not be met.

    Attributes:
        name: as of `Member`.
        target: as it was given.
        reason: one line.
        reached: the share of the original that could be reached; None where that is not known.
        reasons: what stands in the way, one line for each layer or group.
    """

    name: str
    target: Target
    reason: str
    reached: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Models made from one.

    Attributes:
        targets_of: what the targets are of: a key of `TARGETS_OF`.
        members: those that were made, in the order of the targets.
        missed: targets that could not be met, in their order.
        seconds: that it took to gather what all of them were decided from, by stage.
    """

    targets_of: str
    members: tuple[Member, ...]
    missed: tuple[Missed, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Saved:
    """A member on disk.

    Attributes:
        name: of the member.
        path: of the model.
        plan: its folder.
        report: of the member, with the checks of the file.
    """

    name: str
    path: Path
    plan: Path
    report: Report


def prune_family(
    model: ir.Model,
    targets: Sequence[Target],
    *,
    targets_of: str = "latency",
    made: Callable[[Member], None] | None = None,
    **options: Any,
) -> Family:
    """Prune one model to several targets; scores, curves and times are measured once.

    Each member is what `onnxprune.prune` gives for its target alone, whatever the other targets are. (What is
    measured in time differs from run to run by the noise of the machine, and so do members by latency.)

    Args:
        model: from `onnxprune.load`; not changed.
        targets: shares of the original that may stay, in (0, 1]; for latency also milliseconds, as
            ``"12ms"``; for ``amount`` the shares that go, in [0, 1).
        targets_of: ``latency`` (the default), ``macs``, ``params``, ``size`` (bytes of all weights) or
            ``amount``. Zeros change none of the former: they take amounts.
        made: called with every member as soon as it is proved and repaired, so that it can be written before
            the next one is begun.
        **options: as for `onnxprune.prune`; further targets hold for all members.

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: nothing can go for any of the targets; ``reasons`` says why.
        DataError, ModelError, ProofError, RuntimeFailure: as `onnxprune.prune`.
    """
    option = _option(targets_of, options)
    wanted = _named_targets(targets, targets_of)
    first = next(iter(wanted.values()))
    given = options_of_prune(model, {**options, option: first})
    _check_pattern(given["pattern"], targets_of)
    job = prepared(model, given)
    pruner = pruner_for(job.task, job.recipe, job.watch)
    members, missed = [], []
    nothing: list[NothingToPrune] = []
    for name, target in wanted.items():
        watch = Watch(
            sections=dict(job.watch.sections), progress=job.watch.progress, running=job.watch.running
        )
        try:
            result = pruner.prune({**job.recipe, option: target}, watch)
        except LimitMissed as error:
            missed.append(Missed(name, target, str(error), error.reached, error.reasons))
            continue
        except NothingToPrune as error:
            nothing.append(error)
            missed.append(Missed(name, target, str(error), None, error.reasons))
            continue
        members.append(Member(name, target, result))
        if made is not None:
            made(members[-1])
    if len(nothing) == len(wanted):
        raise nothing[0]
    return Family(targets_of, tuple(members), tuple(missed), dict(job.watch.seconds))


def _option(targets_of: str, options: Mapping[str, Any]) -> str:
    if targets_of not in TARGETS_OF:
        known = ", ".join(TARGETS_OF)
        raise UsageError(
            f"targets are of {known}, not of {targets_of!r}{did_you_mean(targets_of, TARGETS_OF)}"
        )
    option = TARGETS_OF[targets_of]
    if options.get(option) is not None:
        raise UsageError(f"targets of {targets_of} take the place of {option}: leave that out")
    return option


def _named_targets(targets: Sequence[Target], targets_of: str) -> dict[str, Target]:
    """Return the targets by their names; shares as numbers.

    Raises:
        UsageError: there are none, one stands twice, or one makes no sense.
    """
    if isinstance(targets, str) or not targets:
        raise UsageError("targets are a list of shares, such as 0.8, 0.6, 0.4")
    found: dict[str, Target] = {}
    for target in targets:
        value, text = _read(target, targets_of)
        if f"{targets_of}-{text}" in found:
            raise UsageError(f"target {text} stands twice: leave one out")
        found[f"{targets_of}-{text}"] = value
    return found


def _read(target: Target, targets_of: str) -> tuple[Target, str]:
    """Return a target as `onnxprune.prune` takes it, and as it stands in a name."""
    if targets_of == "latency":
        share, ms = parse_target(target)
        return (share, f"{share:.10g}") if share is not None else (target, f"{ms:.10g}ms")
    try:
        share = float(target)
    except (TypeError, ValueError):
        share = -1.0
    if targets_of == "amount" and not 0 <= share < 1:
        raise UsageError(f"an amount is the share that goes, in [0, 1), not {target!r}")
    if targets_of != "amount" and not 0 < share <= 1:
        raise UsageError(f"a target of {targets_of} is the share that stays, in (0, 1], not {target!r}")
    return share, f"{share:.10g}"


def _check_pattern(pattern: str, targets_of: str) -> None:
    """Refuse patterns of which there is no family of this kind, before long work."""
    if pattern == DEAD or runs_of(pattern) is not None:
        raise UsageError(
            f"pattern {pattern!r} says itself how much goes: it has no family, leave targets out"
        )
    if pattern not in STRUCTURED and pattern != "layers" and targets_of != "amount":
        raise UsageError(
            f"zeros change no {targets_of}: pattern {pattern!r} has a family by amounts alone, such as "
            "--targets 0.5,0.7,0.9 --targets-of amount"
        )


def save_family(
    family: Family,
    folder: str | Path,
    *,
    name: str = "model",
    against: str | Path | None = None,
    **storage: Any,
) -> tuple[Saved, ...]:
    """Write every member of a family as `onnxprune.save_pruned` does, each with its plan beside it.

    Args:
        family: from `prune_family`.
        folder: where they go, as ``NAME-macs-0.5.onnx`` and ``NAME-macs-0.5.plan``; made if it is missing.
        name: what their names begin with.
        against: the file that they were made from: interface and size are compared with it.
        **storage: ``external_data`` and ``sparse_storage``, as for `onnxprune.save`.

    Raises:
        OutputError: a file can't be written; those before it are whole.
        VerificationError: a file is not what it should be; it was not written.
    """
    return tuple(
        save_member(member, folder, name=name, against=against, **storage) for member in family.members
    )


def save_member(
    member: Member,
    folder: str | Path,
    *,
    name: str = "model",
    against: str | Path | None = None,
    **storage: Any,
) -> Saved:
    """Write one member of a family: see `save_family`."""
    base = family_folder(folder) / f"{name}-{member.name}"
    path, plan = (base.with_name(f"{base.name}.{ending}") for ending in ("onnx", "plan"))
    report = save_pruned(member.result, path, against=against, plan_folder=plan, **storage)
    return Saved(member.name, path, plan, replace(report, title=path.name))


def family_folder(folder: str | Path) -> Path:
    """Return the folder that a family goes to, which is made if it is missing.

    Raises:
        OutputError: it is no folder, or can't be made.
    """
    check_folder(folder)
    with output_errors(Path(folder)):
        Path(folder).mkdir(exist_ok=True)
    return Path(folder)


def check_folder(folder: str | Path) -> None:
    """Refuse what can't be the folder of a family.

    Raises:
        OutputError: something else has the name, or the folder that it would be in is missing.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{visible(path)}: is a file, and a family goes to a folder; name another place")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{visible(path)}: there is no folder {visible(path.parent)}; create it first")
