"""The parts of a transformer by what they do: query, key, value and output matrices, feed-forward matrices, norms.

Methods that choose heads, halves of layers, one matrix, or every block need to know what a module is for, in models
that call the same thing ``o_proj``, ``out_proj``, ``attention.output.dense`` or ``attn.c_proj``. Found by structure
(lists of blocks that hold attention) and by the names that transformers uses, never by a table of model types, so a
new architecture in the usual names works the day it appears. Covers decoders (Llama, Mistral, Qwen, Gemma, Phi-3,
GPT-2, GPT-NeoX, OPT, Falcon, BLOOM), encoders (BERT, RoBERTa, DistilBERT, T5), ViT, CLIP and their kin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import is_linear, linear_shape

__all__ = ["Anatomy", "Block", "Category", "Part", "Role", "anatomy"]

Category = Literal["attention", "ffn", "norm"]
Role = Literal["q", "k", "v", "qkv", "o", "up", "gate", "gate_up", "down", "norm", "head_norm"]

# The end of a module's name inside its block -> what it does. The first that fits counts, so that
# ``attention.output.dense`` is not taken for the feed-forward's ``output.dense``.
_NAMES: tuple[tuple[str, Role, Category], ...] = (
    (r"(q_proj|q_lin|(self|attention|attn)\.query|\w*([Aa]ttention|attn)\.q)", "q", "attention"),
    (r"(k_proj|k_lin|(self|attention|attn)\.key|\w*([Aa]ttention|attn)\.k)", "k", "attention"),
    (r"(v_proj|v_lin|(self|attention|attn)\.value|\w*([Aa]ttention|attn)\.v)", "v", "attention"),
    (r"(qkv_proj|Wqkv|query_key_value|attn\.c_attn|(attn|attention)\.qkv)", "qkv", "attention"),
    (
        r"(o_proj|out_proj|out_lin|attention\.output\.dense|attn\.c_proj|attention\.dense|self_attention\.dense"
        r"|(attn|attention)\.(Wo|proj)|\w*([Aa]ttention|attn)\.o)",
        "o",
        "attention",
    ),
    (r"(gate_up_proj|mlp\.Wi)", "gate_up", "ffn"),
    (r"(gate_proj|\w*\.w1|wi_0)", "gate", "ffn"),
    (r"(up_proj|fc1|c_fc|intermediate\.dense|dense_h_to_4h|lin1|\w*\.w3|wi_1|wi|linear_1|ffn)", "up", "ffn"),
    (
        r"(down_proj|fc2|mlp\.c_proj|output\.dense|dense_4h_to_h|lin2|\w*\.w2|wo|linear_2|mlp\.Wo|ffn_output)",
        "down",
        "ffn",
    ),
)
_TABLE = [(re.compile(rf"(?:.*\.)?{pattern}"), role, category) for pattern, role, category in _NAMES]
_HEAD_NORM = re.compile(r"(?:.*\.)?[qk]_?(layer)?norm")


@dataclass(frozen=True)
class Part:
    """A module of a block with a weight.

    Attributes:
        name: in the model.
        module: itself.
        role: what it does; ``qkv`` and ``gate_up`` are fused matrices, ``head_norm`` a norm of single heads.
        category: ``attention``, ``ffn`` or ``norm``.
        parameters: full names of its parameters, the weight first.
    """

    name: str
    module: Any = field(repr=False)
    role: Role
    category: Category
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One layer of a stack.

    Attributes:
        index: number over all stacks of the model, from 0.
        name: in the model.
        stack: name of the list it is in.
        module: itself.
        parts: in the order of the model.
        unmatched: full names of parameters that belong to no part, such as stacked experts and routers.
        attention: name of the module that holds the attention matrices and nothing else of the block, or None.
        ffn: the same for the feed-forward matrices.
        n_heads: query heads; 0 where the block has no attention of the usual form.
        n_kv_heads: key and value heads.
        head_dim: width of one head.
    """

    index: int
    name: str
    stack: str
    module: Any = field(repr=False)
    parts: tuple[Part, ...]
    unmatched: tuple[str, ...]
    attention: str | None
    ffn: str | None
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def role(self, role: Role) -> list[Part]:
        """Return the parts with that role; none, one, or several (experts, cross-attention)."""
        return [part for part in self.parts if part.role == role]

    def one(self, role: Role) -> Part:
        """Return the only part with that role.

        Raises:
            ParameterError: there is none, or more than one; names what the block has.
        """
        found = self.role(role)
        if len(found) != 1:
            roles = ", ".join(sorted({part.role for part in self.parts})) or "no known part"
            raise ParameterError(
                "model",
                anatomy,
                f"a transformer with one '{role}' matrix in each block; {self.name} has {len(found)} "
                f"(it has {roles})",
                [part.name for part in found],
            )
        return found[0]


@dataclass(frozen=True)
class Anatomy:
    """All blocks of a model, and what lies outside them.

    Attributes:
        blocks: over all stacks, in order; ``blocks[i].index == i``.
        outside: names of parameters outside of blocks (embeddings, final norm, head), tied ones once.
    """

    blocks: list[Block]
    outside: list[str]

    @property
    def stacks(self) -> dict[str, list[Block]]:
        """The blocks by the name of their list; CLIP has two, an encoder-decoder too."""
        table: dict[str, list[Block]] = {}
        for block in self.blocks:
            table.setdefault(block.stack, []).append(block)
        return table

    def block_of(self, name: str) -> Block | None:
        """Return the block that a module or parameter belongs to, or None."""
        return next((b for b in self.blocks if name == b.name or name.startswith(f"{b.name}.")), None)


def anatomy(model: Any) -> Anatomy:
    """Find the blocks of a transformer and the parts of each.

    For a model with PEFT adapters in it, a part is the wrapper around the layer. Time O(modules x patterns), no
    tensor is read.

    Args:
        model: a transformers model, or any module with lists of transformer blocks.

    Returns:
        The anatomy; parts in the model's order.

    Raises:
        ParameterError: no list of blocks with attention and feed-forward matrices was found; lists the parameters.
    """
    blocks: list[Block] = []
    for stack, layers in _stacks(model):
        for i, module in layers.named_children():
            blocks.append(_block(module, f"{stack}.{i}" if stack else i, stack, len(blocks)))
    if not blocks:
        names = [name for name, _ in model.named_parameters()]
        raise ParameterError(
            "model",
            anatomy,
            "a transformer whose blocks hold attention and feed-forward matrices under the names that transformers "
            f"uses; none of these was recognised: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}",
            type(model).__name__,
        )
    starts = tuple(f"{block.name}." for block in blocks)
    outside = [name for name, _ in model.named_parameters() if not name.startswith(starts)]
    return Anatomy(blocks, outside)


def _stacks(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the innermost module lists with a child that holds both attention and feed-forward matrices."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and any(_is_block(child) for child in module)
    ]
    names = [name for name, _ in found]
    for name, module in found:
        if not any(other.startswith(f"{name}.") for other in names if other != name):
            yield name, module


def _is_block(module: Any) -> bool:
    names = [name for name, _ in module.named_modules()]
    categories = {found[1] for name, child in module.named_modules() if (found := _recognise(name, child))}
    # Experts are stacked in one parameter of three dimensions, in a module that is no linear layer.
    return "attention" in categories and ("ffn" in categories or any("experts" in name for name in names))


def _recognise(name: str, module: Any) -> tuple[Role, Category] | None:
    if is_linear(module) or hasattr(module, "base_layer"):
        for pattern, role, category in _TABLE:
            if pattern.fullmatch(name):
                return role, category
    return None


def _block(module: Any, name: str, stack: str, index: int) -> Block:
    parts: list[Part] = []
    for inner, child in module.named_modules():
        found = _recognise(inner, child)
        if (
            found is None
            and "norm" in type(child).__name__.lower()
            and not any(True for _ in child.children())
        ):
            found = ("head_norm" if _HEAD_NORM.fullmatch(inner) else "norm"), "norm"
        if found is None:
            continue
        names = sorted((f"{name}.{inner}.{p}" for p, _ in child.named_parameters()), key=_weight_first)
        if names:
            parts.append(Part(f"{name}.{inner}", child, found[0], found[1], tuple(names)))
    covered = {p for part in parts for p in part.parameters}
    every = [f"{name}.{p}" for p, _ in module.named_parameters()]
    heads, kv_heads, width = _heads(module, parts)
    return Block(
        index=index,
        name=name,
        stack=stack,
        module=module,
        parts=tuple(parts),
        unmatched=tuple(p for p in every if p not in covered),
        attention=_common(parts, "attention", name),
        ffn=_common(parts, "ffn", name),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=width,
    )


def _weight_first(name: str) -> tuple[bool, str]:
    return not name.endswith("weight"), name


def _common(parts: list[Part], category: Category, block: str) -> str | None:
    """Return the name of the innermost module around all parts of a category, if that is not the block itself."""
    paths = [part.name.split(".")[:-1] for part in parts if part.category == category]
    if not paths:
        return None
    shared = paths[0]
    for path in paths[1:]:
        same = [a == b for a, b in zip(shared, path, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    name = ".".join(shared)
    others = any(p.name.startswith(f"{name}.") for p in parts if p.category not in (category, "norm"))
    return name if len(name) > len(block) and not others else None


def _heads(module: Any, parts: list[Part]) -> tuple[int, int, int]:
    """Return query heads, key-value heads and head width, or zeros."""
    outs = [part for part in parts if part.role == "o"]
    if not outs:
        return 0, 0, 0
    # PEFT's wrappers pass ``in_features`` on; a wrapped Conv1D shows its widths through its base layer.
    wide = linear_shape(getattr(outs[0].module, "base_layer", outs[0].module))[0]
    heads = _attribute(module, ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_q_heads"))
    width = _attribute(module, ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size"))
    if heads is None:
        config = next((c for m in module.modules() if (c := getattr(m, "config", None)) is not None), None)
        heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_heads", None)
    if width is None and heads:
        width = wide // heads
    if not width or wide % width:
        return 0, 0, 0
    keys = [part for part in parts if part.role == "k"]
    if keys:
        kv_heads = linear_shape(getattr(keys[0].module, "base_layer", keys[0].module))[1] // width
    else:
        kv_heads = _attribute(module, ("num_key_value_heads", "num_kv_heads")) or wide // width
    return wide // width, kv_heads, width


def _attribute(module: Any, names: tuple[str, ...]) -> int | None:
    for inner in module.modules():
        for name in names:
            if isinstance(value := getattr(inner, name, None), int) and not isinstance(value, bool):
                return value
    return None
