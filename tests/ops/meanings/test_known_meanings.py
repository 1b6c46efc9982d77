"""Which operators have a torch meaning."""

from __future__ import annotations

import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from onnxprune.ops import meanings
from onnxprune.ops.base import _RULES
from onnxprune.ops.meanings.base import known_meanings, meaning, meaning_for
from onnxprune.ops.registry import FAMILIES

#: Operators whose channels are followed, and that can't be run in torch: the reason.
_TEXT = "torch has no strings"
WITHOUT: dict[tuple[str, str], str] = {
    ("", "ImageDecoder"): "it reads the bytes of a file",
    ("", "RegexFullMatch"): _TEXT,
    ("", "StringConcat"): _TEXT,
    ("", "StringNormalizer"): _TEXT,
    ("", "StringSplit"): _TEXT,
    ("", "TfIdfVectorizer"): _TEXT,
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): "it decodes one token with a cache in place",
    ("com.microsoft", "DynamicQuantizeLSTM"): "its weights are integers",
}


def test_every_operator_with_a_rule_has_a_meaning_or_a_reason():
    assert FAMILIES
    assert meanings.FAMILIES
    assert set(_RULES) - known_meanings() == set(WITHOUT)
    assert all(WITHOUT.values())


def test_an_operator_has_one_meaning():
    with pytest.raises(ValueError, match="two meanings of :Relu"):
        meaning("Relu")(lambda _: lambda x: x)


def test_both_names_of_the_standard_domain_are_known():
    assert meaning_for(ir.node("Relu", [None])) is meaning_for(ir.node("Relu", [None], domain="ai.onnx"))
    assert meaning_for(ir.node("Relu", [None], domain="somebody.else")) is None
