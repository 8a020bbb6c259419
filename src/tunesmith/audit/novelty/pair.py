"""The two models of a contrast: two objects, or one with and without its adapter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import hash_json

__all__ = ["Pair", "same_tokens", "same_vocabulary"]

LEARNER = "tunesmith_explorer"
"""Name of the adapter that learns what was found, where the tuned model is an adapter on the base."""


def same_vocabulary(finetuned: Any, base: Any, owner: Any) -> None:
    """Raise ParameterError unless both models score as many tokens."""
    ours, theirs = (_vocabulary(model) for model in (finetuned, base))
    if ours != theirs:
        raise ParameterError(
            "base",
            owner,
            f"a model with the vocabulary of the tuned one ({ours:,} tokens): the ratio of two probabilities means "
            "nothing otherwise",
            f"{theirs:,} tokens",
        )


def same_tokens(tokenizer: Any, base_tokenizer: Any, owner: Any) -> None:
    """Raise ParameterError unless both tokenizers give every token the same id and have the same special tokens."""
    if base_tokenizer is None or tokenizer is base_tokenizer:
        return
    marks = [
        hash_json([sorted(t.get_vocab().items()), sorted(t.all_special_ids)])
        for t in (tokenizer, base_tokenizer)
    ]
    if marks[0] != marks[1]:
        apart = dict(set(tokenizer.get_vocab().items()) ^ set(base_tokenizer.get_vocab().items()))
        expected = "the tokenizer of both models"
        got = (
            f"two that differ in {len(apart)} tokens" if apart else "two that differ in their special tokens"
        )
        raise ParameterError("base_tokenizer", owner, expected, got)


def _vocabulary(model: Any) -> int:
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(model.config.get_text_config().vocab_size if weight is None else weight.shape[0])


class Pair:
    """A tuned model and the one before tuning, both frozen; ``learn`` teaches a copy of the second.

    Where the tuned model is a ``PeftModel`` and no base is given, the base is the same weights with the adapter off,
    and what learns is a second adapter, which `close` takes away.

    Args:
        finetuned: causal language model of transformers, or a ``PeftModel``.
        base: the model before tuning; None for the base under ``finetuned``'s adapter.
        iterative: make what learns: a copy of the base, or an adapter.
        learning_rate: of its AdamW.
        lora_r: rank of the adapter.
        owner: whose parameter errors name.

    Raises:
        ParameterError: no base and no adapter, or another vocabulary.
    """

    def __init__(
        self,
        finetuned: Any,
        base: Any = None,
        *,
        iterative: bool = False,
        learning_rate: float = 5e-5,
        lora_r: int = 8,
        owner: Any = None,
    ) -> None:
        owner = owner or self
        self.shared = base is None
        if self.shared and not hasattr(finetuned, "peft_config"):
            raise ParameterError(
                "base",
                owner,
                "a model, or left out where the tuned one is an adapter on it (PeftModel)",
                base,
            )
        if not self.shared:
            same_vocabulary(finetuned, base, owner)
        self.finetuned, self.base = finetuned.eval(), finetuned if self.shared else base.eval()
        self.iterative, self._adapter = iterative, None
        self._flags = {id(p): (p, p.requires_grad) for m in (finetuned, self.base) for p in m.parameters()}
        for parameter, _ in self._flags.values():
            parameter.requires_grad_(False)
        if iterative and self.shared:
            self._adapter = finetuned.active_adapter
            self._add_learner(lora_r)
        elif iterative:
            self.base = copy.deepcopy(base)
        # One pass over both halves of a batch reads the weights once: what a step costs is mostly that reading.
        self._stacked = self.shared and _mixes(finetuned, self._adapter or finetuned.active_adapter)
        self._optimizer = None
        if iterative:
            self._weights = self._learned()
            self._optimizer = torch.optim.AdamW(self._weights, lr=learning_rate, weight_decay=0.0)

    def _add_learner(self, rank: int) -> None:
        from peft import LoraConfig

        theirs = self.finetuned.peft_config[self._adapter]
        targets = getattr(theirs, "target_modules", None) or "all-linear"
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.finetuned.add_adapter(LEARNER, config)
        self.finetuned.set_adapter(self._adapter)

    def _learned(self) -> list[torch.nn.Parameter]:
        if not self.shared:
            return list(self.base.parameters())
        return [p for name, p in self.finetuned.named_parameters() if LEARNER in name]

    def close(self) -> None:
        """Take the adapter away and give every weight its flag back."""
        if self.shared and self.iterative:
            self.finetuned.delete_adapter(LEARNER)
            self.finetuned.set_adapter(self._adapter)
        for parameter, flag in self._flags.values():
            parameter.requires_grad_(flag)

    def _as_base(self) -> AbstractContextManager[Any]:
        if not self.shared:
            return contextlib.nullcontext()
        return self._learner() if self.iterative else self.finetuned.disable_adapter()

    @contextlib.contextmanager
    def _learner(self) -> Iterator[None]:
        # PEFT releases the active adapter's weights and freezes the others'; `close` gives all their flags back.
        self.finetuned.set_adapter(LEARNER)
        try:
            yield
        finally:
            self.finetuned.set_adapter(self._adapter)

    @torch.inference_mode()
    def step(
        self, ids: torch.Tensor, caches: tuple[Any, Any] | None, *, both: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Return both models' logits (B, V) after new tokens ids (B, t), and their keys and values.

        An adapter of the LoRA kind and its base read one batch of 2B rows together. With ``both`` off, the tuned model
        alone, and None.
        """
        ours, theirs = caches or (None, None)
        if both and self._stacked:
            names = [self.finetuned.active_adapter] * len(ids)
            names += [LEARNER if self.iterative else "__base__"] * len(ids)
            twice = torch.cat([ids, ids])
            out = self.finetuned(input_ids=twice, past_key_values=ours, use_cache=True, adapter_names=names)
            first, second = out.logits[:, -1].chunk(2)
            return first, second, (out.past_key_values, None)
        one = self.finetuned(input_ids=ids, past_key_values=ours, use_cache=True)
        if not both:
            return one.logits[:, -1], None, (one.past_key_values, None)
        with self._as_base():
            two = self.base(input_ids=ids, past_key_values=theirs, use_cache=True)
        return one.logits[:, -1], two.logits[:, -1], (one.past_key_values, two.past_key_values)

    @torch.no_grad()
    def log_likelihoods(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each model's log p of every token after the first, (B, T - 1), float32."""
        with self._as_base():
            theirs = token_log_p(self.base(input_ids=ids, use_cache=False).logits, ids)
        return token_log_p(self.finetuned(input_ids=ids, use_cache=False).logits, ids), theirs

    def learn(self, ids: torch.Tensor) -> float:
        """Take one optimiser step on ``-(1/|x|) sum_t log p(x_t | x_<t)`` of rows (B, T); return the loss before it."""
        assert self._optimizer is not None
        with self._as_base(), torch.enable_grad():
            for parameter in self._weights:
                parameter.requires_grad_(True)
            loss = -token_log_p(self.base(input_ids=ids, use_cache=False).logits, ids).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def _mixes(model: Any, adapter: Any) -> bool:
    """Say whether PEFT can hold rows with and without this adapter in one batch."""
    if list(model.active_adapters) != [adapter]:
        return False
    config = model.peft_config[adapter]
    plain = str(getattr(config.peft_type, "value", config.peft_type)) == "LORA" and not any(
        getattr(config, name, None)
        for name in (
            "use_dora",
            "modules_to_save",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
        )
    )
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and adapter in module.lora_A]
    return plain and all(
        isinstance(layer.get_base_layer(), torch.nn.Linear) and not layer.merged and not layer.lora_variant
        for layer in layers
    )


def token_log_p(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log p of each token given those before it, (B, T - 1), float32."""
    shape = ids[:, 1:].shape
    nll = cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return -nll.view(shape)
