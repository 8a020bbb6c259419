"""What PEFT's tuners need beside their defaults on a model 32 to 64 wide."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 10},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 4},
    "cpt": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
    "multitask_prompt_tuning": {"num_virtual_tokens": 4},
    "p_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [5, 6]},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "waveft": {"n_frequency": 64},
}
