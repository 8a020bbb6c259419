"""Tiny random transformers of the families that a tuner must work on, with one batch of inputs each."""

from __future__ import annotations

from typing import Any

import torch

KINDS = ("llama", "llama-tied", "gpt2", "bert", "vit", "clip")
LANGUAGE_MODELS = ("llama", "llama-tied", "gpt2")


def build(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model in evaluation mode with fixed random weights and inputs for ``model(**inputs)``."""
    import transformers as tf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(kind, tf).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):  # untrained models have ones and zeros here
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        inputs = _inputs(kind)
    if dtype != torch.float32:
        model = model.to(dtype)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return model, inputs


def output_of(result: Any) -> torch.Tensor:
    """Return the tensor that stands for a model's output: logits, similarity, or the last hidden states."""
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if (found := getattr(result, name, None)) is not None:
            return found
    raise AssertionError(f"no output tensor in {type(result).__name__}")


def _model(kind: str, tf: Any) -> Any:
    if kind in ("llama", "llama-tied"):
        return tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=kind == "llama-tied",
                pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    if kind == "gpt2":
        return tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    small = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4
    }  # fmt: skip
    if kind == "bert":
        return tf.BertForSequenceClassification(
            tf.BertConfig(vocab_size=99, max_position_embeddings=64, num_labels=3, **small)
        )
    if kind == "vit":
        return tf.ViTForImageClassification(
            tf.ViTConfig(image_size=16, patch_size=4, num_channels=3, num_labels=3, **small)
        )
    if kind == "clip":
        return tf.CLIPModel(
            tf.CLIPConfig(
                text_config={"vocab_size": 99, "max_position_embeddings": 64, "projection_dim": 16, **small},
                vision_config={"image_size": 16, "patch_size": 4, "projection_dim": 16, **small},
                projection_dim=16,
            )
        )
    raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")


def _inputs(kind: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 99, (2, 9))
    ids[:, -1] = 98  # CLIP pools at the highest id
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if kind == "vit":
        return pixels
    return {**text, **pixels} if kind == "clip" else text
