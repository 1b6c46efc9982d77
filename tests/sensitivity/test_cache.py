"""Outcomes on disk: found again, and never believed when they are not what was written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxprune.errors import OutputError
from onnxprune.sensitivity.cache import Cache
from onnxprune.sensitivity.trials import Outcome, Trial
from onnxprune.types import Mask

KEY = "ab" * 32


def test_there_and_back(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.find(KEY) is None
    cache.store(KEY, Outcome("cross_entropy", 0.1 + 0.2, 0.75), {"subject": "conv"})
    assert Cache(tmp_path / "new" / "folder").find(KEY) == Outcome(
        "cross_entropy", 0.1 + 0.2, 0.75, cached=True
    )
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.read_text().count("\n") == 1
    assert json.loads(file.read_text())["subject"] == "conv"
    assert cache.damaged == []


def damage_number(text):
    return text.replace("0.5", "0.4")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[1, 2]",
        lambda text: text.replace('"loss": 0.5', '"loss": NaN'),
        lambda text: text.replace('"loss": 0.5', '"loss": "0.5"'),
        lambda text: text.replace('"loss": 0.5', '"loss": true'),
        lambda text: text.replace(KEY, "cd" * 32),
        damage_number,
        lambda text: text.replace("mse", "kl"),
        lambda text: text + " " * 5000,
        lambda _: "[" * 4000,
    ],
)
def test_damage_is_seen(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.store(KEY, Outcome("mse", 0.5), {})
    file = tmp_path / f"{KEY}.json"
    file.write_text(damage(file.read_text()))
    assert cache.find(KEY) is None
    assert cache.damaged == [str(file)]


def test_a_folder_in_place_of_an_entry_is_no_entry(tmp_path):
    (tmp_path / f"{KEY}.json").mkdir()
    cache = Cache(tmp_path)
    assert cache.find(KEY) is None
    assert len(cache.damaged) == 1


def test_failures_are_tried_again(tmp_path):
    cache = Cache(tmp_path)
    cache.store(KEY, Outcome("mse", None, failure="no memory"), {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="no folder for a cache"):
        Cache(tmp_path / "file")


def test_a_key_tells_everything_apart():
    channels = np.array([1, 2], np.int32)
    mask = Mask.pack(np.array([[True, False], [False, True]]))
    trials = [
        Trial("a", 8, 2, channels),
        Trial("b", 8, 2, channels),
        Trial("a", 8, 2, np.array([1, 3], np.int32)),
        Trial("a", 4, 2, mask=mask),
        Trial("a", 4, 2, mask=Mask.pack(np.array([[False, True], [False, True]]))),
        Trial("a", 4, 2, mask=Mask((4,), mask.bits)),
    ]
    keys = {trial.key(setting) for trial in trials for setting in ("one", "other")}
    assert len(keys) == 2 * len(trials)
