"""Channel groups -> curves: each group that may lose channels loses some, alone, at several amounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.allocate.channels import removed_at
from onnxprune.allocate.dead import Dead
from onnxprune.allocate.options import Options
from onnxprune.analyze import Analysis
from onnxprune.data import Dataset
from onnxprune.ops.sums import Sums
from onnxprune.planning.curves import Measured, Setting, Source, run_trials
from onnxprune.planning.workbench import Cutter
from onnxprune.sensitivity.trials import Trial
from onnxprune.types import ChannelGroup, Curve, Scores


@dataclass(frozen=True, slots=True)
class Candidates:
    """What channels are chosen from, and how.

    Attributes:
        analysis: of the model.
        analysis_options: with which it was made.
        sums: the constants that were found.
        groups: all of them; those without scores are frozen.
        scores: of the others.
        options: how channels are chosen.
        dead: what goes first, and what goes last.
    """

    analysis: Analysis
    analysis_options: Mapping[str, Any]
    sums: Sums
    groups: Sequence[ChannelGroup]
    scores: Scores
    options: Options
    dead: Dead


def measure_channels(
    candidates: Candidates,
    amounts: Sequence[float],
    data: Dataset,
    setting: Setting,
    *,
    path: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Measured:
    """Cut channels from one group at a time, and measure what that costs.

    Args:
        candidates: the groups.
        amounts: shares of each group; what is cut are the nearest counts that alignment and floor allow.
        data: samples, with labels or without.
        setting: how trials are run.
        path: the model's file, if it is known.
        progress: called after every trial with the share that is done, in (0, 1].

    Raises:
        UsageError, DataError, RuntimeFailure, OutputError: as `run_trials`.
    """
    analysis, dead = candidates.analysis, candidates.dead
    sets = removed_at(
        candidates.groups, candidates.scores, candidates.options, amounts,
        first=dead.removable, last=dead.carriers,
    )  # fmt: skip
    sizes = {group.name: group.size for group in candidates.groups}
    trials = [Trial(name, sizes[name], len(gone), gone) for name, each in sets.items() for gone in each]
    cutter = Cutter(analysis, candidates.sums)
    source = Source(analysis.given, cutter, candidates.analysis_options, path)
    return run_trials(source, trials, data, setting, progress)


def without_unmeasured(
    groups: Sequence[ChannelGroup], open_: Sequence[str], curves: Mapping[str, Curve]
) -> list[ChannelGroup]:
    """Freeze the open groups that have no curve."""
    reason = "no trial without some of its channels could be measured"
    return [
        replace(group, frozen=reason) if group.name in open_ and group.name not in curves else group
        for group in groups
    ]
