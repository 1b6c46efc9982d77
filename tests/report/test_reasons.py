from __future__ import annotations

from onnxprune.report.reasons import gather
from onnxprune.types import Skipped


def shown(*pairs):
    return [(found.reason, found.names) for found in gather(Skipped(*pair) for pair in pairs)]


def test_equal_reasons_come_together_to_the_letter():
    assert shown(("a", "output y of the model"), ("b", "output y of the model")) == [
        ("output y of the model", ("a", "b"))
    ]


def test_names_and_numbers_do_not_keep_reasons_apart():
    assert shown(
        ("a", "node_layer_norm takes mean and deviation over these channels"),
        ("b", "encoder/norm_2 takes mean and deviation over these channels"),
        ("c", "of 64 channels, all are needed"),
        ("d", "of 128 channels, all are needed"),
        ("e", "protected by 'stem*'"),
        ("f", "protected by 'head.*'"),
    ) == [
        ("... takes mean and deviation over these channels", ("a", "b")),
        ("of ... channels, all are needed", ("c", "d")),
        ("protected by ...", ("e", "f")),
    ]


def test_a_single_reason_keeps_its_names():
    assert shown(("a", "node_3 pools along this axis")) == [("node_3 pools along this axis", ("a",))]


def test_different_reasons_stay_apart_in_their_order():
    found = shown(("a", "nothing is known of LSTM"), ("b", "output y"), ("c", "nothing is known of GRU"))
    assert [names for _, names in found] == [("a",), ("b",), ("c",)]


def test_a_model_of_many_layers_has_few_reasons():
    pairs = [(f"layer{i}", f"layers.{i}.norm takes the mean over these channels") for i in range(300)]
    found = shown(*pairs, ("fc", "output y of the model"))
    assert len(found) == 2
    assert len(found[0][1]) == 300


def test_nothing_gives_nothing():
    assert shown() == []
