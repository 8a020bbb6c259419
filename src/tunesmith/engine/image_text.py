"""Likelihood of answers given an image and an instruction, under any image-text-to-text model of transformers.

Which tokens are the answer's follows from the processor's own chat template: the conversation is rendered with and
without the answer, and what the second rendering adds, less trailing white space, is scored: the answer and its
end-of-turn token, never the image, the instruction or the line break that closes a turn.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["image_text_nll", "open_image"]


def open_image(source: Any) -> Any:
    """Return an RGB `PIL.Image.Image` from one, or from a path; EXIF rotation is applied.

    Raises:
        DataError: neither, or a file that cannot be read as an image.
    """
    from PIL import Image, ImageOps

    try:
        image = source if isinstance(source, Image.Image) else Image.open(os.fspath(source))
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, TypeError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        raise DataError(f"an image cannot be read: {error}.", content=str(source)[:200]) from error


def image_text_nll(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    answers: Sequence[str],
    instruction: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the summed negative log-likelihood of each answer, and its number of tokens, in one forward pass.

    Rows are padded on the right whatever the tokenizer's side, so that neither batch nor order changes a value
    beyond rounding. Log-probabilities are computed in float32. Where the model can, logits are made from the
    first answer's position on, not for the image's tokens before it.

    Args:
        model: in evaluation mode, on any device; decoder-only over image and text.
        processor: the model's; with a chat template, else the prompt is image token, instruction, line break.
        images: b images (`open_image`), or all ``None`` for text alone.
        answers: b texts.
        instruction: the user's turn beside the image.

    Returns:
        float64 ``(b,)`` summed nll in nats, int64 ``(b,)`` tokens scored (the end-of-turn token among them).

    Raises:
        ParameterError: an encoder-decoder model.
        DataError: a template whose conversation does not begin with its prompt, or a model that returns logits
            of another length than its input.
    """
    import torch

    if getattr(model.config, "is_encoder_decoder", False):
        raise ParameterError("model", "image_text_nll", "decoder-only", type(model).__name__)
    pictures = [image for image in images if image is not None]
    if pictures and len(pictures) < len(answers):
        raise DataError("a batch has images in all of its rows or in none.")
    pairs = [_render(processor, instruction, answer, bool(pictures)) for answer in answers]
    counts = np.array([_new_tokens(processor.tokenizer, *pair) for pair in pairs], dtype=np.int64)
    inputs = processor(
        text=[prompt + answer for prompt, answer in pairs],
        **({"images": [[picture] for picture in pictures]} if pictures else {}),
        padding=True,
        padding_side="right",
        return_tensors="pt",
        # The template has written the special tokens; a prompt without one has the tokenizer's own.
        add_special_tokens=not _template(processor),
    ).to(model.device)
    for name, value in inputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    lengths = inputs["attention_mask"].sum(dim=1).cpu().numpy()
    total = inputs["input_ids"].shape[1]
    first = int((lengths - counts).min()) - 1  # the state at t predicts the token at t + 1
    short = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.inference_mode():
        keep = {"logits_to_keep": total - first} if short else {}
        logits = model(**inputs, use_cache=False, **keep).logits
    if logits.shape[1] != (total - first if short else total):
        raise DataError(
            f"{type(model).__name__} returns {logits.shape[1]} logits for {total} tokens, so its answers cannot be "
            "found in them."
        )
    logits, ids = logits[:, (0 if short else first) :], inputs["input_ids"][:, first:]
    sums = np.zeros(len(answers))
    for k, (stop, count) in enumerate(zip(lengths - first, counts, strict=True)):
        part = logits[k, stop - count - 1 : stop - 1].float()
        nll = torch.nn.functional.cross_entropy(part, ids[k, stop - count : stop], reduction="none")
        sums[k] = float(nll.double().sum())
    return sums, counts


def _template(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None))


def _render(processor: Any, instruction: str, answer: str, with_image: bool) -> tuple[str, str]:
    """Return the prompt, and what the answer adds to it."""
    if not _template(processor):
        token = getattr(processor, "image_token", "") if with_image else ""
        return f"{token}{instruction}\n", answer.rstrip()
    content: list[dict[str, str]] = [{"type": "image"}] if with_image else []
    user = {"role": "user", "content": [*content, {"type": "text", "text": instruction}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    prompt = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template([user, reply], tokenize=False)
    if not whole.startswith(prompt):
        raise DataError(
            "the processor's chat template writes a conversation that does not begin with its own prompt, so the "
            "answer cannot be told from it; give the processor another template.",
            content=whole[:200],
        )
    return prompt, whole[len(prompt) :].rstrip()


def _new_tokens(tokenizer: Any, prompt: str, answer: str) -> int:
    """Count the tokens at the end of ``prompt + answer`` that differ from the prompt's own.

    A token that straddles the boundary counts as the answer's. Images expand inside the prompt only.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return len(whole) - same
