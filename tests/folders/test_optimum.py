"""Folders that Optimum exports from small models with random weights, and then runs once they are pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune_folder
from onnxprune.errors import UsageError

pytest.importorskip("optimum.exporters.onnx", reason="optimum-onnx is not installed")

pytestmark = pytest.mark.long

SMALL = {"vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def models() -> dict[str, tuple[str, Any, str]]:
    """Task, model and class to run it with, by name."""
    import transformers as hf

    feed_forward = {"intermediate_size": 64, "max_position_embeddings": 64}
    bert = hf.BertConfig(**SMALL, **feed_forward)
    gpt2 = hf.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    llama = hf.LlamaConfig(**SMALL, **feed_forward, num_key_value_heads=2)
    t5 = hf.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    vit = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
        patch_size=8,
    )  # fmt: skip
    return {
        "bert": (
            "text-classification",
            lambda: hf.BertForSequenceClassification(bert),
            "SequenceClassification",
        ),
        "vit": ("image-classification", lambda: hf.ViTForImageClassification(vit), "ImageClassification"),
        "gpt2": ("text-generation-with-past", lambda: hf.GPT2LMHeadModel(gpt2), "CausalLM"),
        "llama": ("text-generation-with-past", lambda: hf.LlamaForCausalLM(llama), "CausalLM"),
        "t5": ("text2text-generation-with-past", lambda: hf.T5ForConditionalGeneration(t5), "Seq2SeqLM"),
    }  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "vit", "gpt2", "llama", "t5"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    import torch
    from optimum.exporters.onnx import onnx_export_from_model

    task, build, kind = models()[request.param]
    torch.manual_seed(0)
    model = build().eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("export") / request.param
    onnx_export_from_model(model, folder, task=task, do_validation=False)
    return kind, folder


def answers(kind: str, folder: Path) -> list[float]:
    import optimum.onnxruntime
    import torch

    model = getattr(optimum.onnxruntime, f"ORTModelFor{kind}").from_pretrained(folder)
    if kind == "ImageClassification":
        torch.manual_seed(0)
        return list(model(torch.randn(1, 3, 32, 32)).logits.ravel().tolist())
    ids = torch.arange(3, 9)[None]
    mask = torch.ones_like(ids)
    if kind == "SequenceClassification":
        given = {"token_type_ids": torch.zeros_like(ids)}
        return list(model(input_ids=ids, attention_mask=mask, **given).logits.ravel().tolist())
    written = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, min_new_tokens=8)
    return list(written.ravel().tolist())


def test_what_is_pruned_runs_in_optimum(exported, tmp_path):
    """Caches have the sizes that config.json says, as inputs and outputs are never cut."""
    kind, folder = exported
    before = answers(kind, folder)
    report = prune_folder(folder, tmp_path / "out", amount=0.5)
    assert len(report.sections["models"]) == len(list(folder.glob("*.onnx")))
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    after = answers(kind, tmp_path / "out")
    assert len(after) == len(before)
    assert after != before


def test_decoders_of_one_cache_agree_or_are_refused(exported, tmp_path):
    kind, folder = exported
    if kind != "Seq2SeqLM":
        pytest.skip("one file")
    with pytest.raises(UsageError, match="share a cache"):
        prune_folder(folder, tmp_path / "out", target_macs=0.93, align=1)
