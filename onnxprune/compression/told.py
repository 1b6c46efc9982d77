"""Who is told how a run goes."""

from __future__ import annotations

from collections.abc import Callable


class Told:
    """Who is told how a run goes; nobody, unless its methods are replaced.

    Attributes:
        step: called with what begins now, in a few words.
        progress: called with the share of it that is done, in [0, 1], and perhaps how it goes.
    """

    def __init__(
        self,
        step: Callable[[str], None] = lambda _text: None,
        progress: Callable[[float, str], None] = lambda _share, _note: None,
    ) -> None:
        self.step = step
        self.progress = progress
