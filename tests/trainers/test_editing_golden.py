"""LocFT-BF against numbers of the authors' code (tests/golden/locft-bf.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.metrics.editing import compute, normalize_answer
from tunesmith.trainers.editing import breadth_first, edit_loss
from tunesmith.trainers.editing.editor import fine_tune
from tunesmith.trainers.editing.encoding import EncodedEdit, collate
from tunesmith.trainers.editing.tuned import TunedWeights
from tunesmith.tuners.locft import LocFTConfig, find_sites

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "locft-bf.json").read_text())["cases"]
}


def tensor(value: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def edits_of(case: dict[str, Any]) -> list[EncodedEdit]:
    return [
        EncodedEdit(tuple(row["prompt_ids"]), tuple(row["target_ids_with_eos"]))
        for row in case["inputs"]["edits"]
    ]


def llama(n_layers: int, **sizes: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 2, **sizes}
    return LlamaForCausalLM(
        LlamaConfig(
            **config,
            num_hidden_layers=n_layers,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("name", ["edit_run_mlp_down", "edit_run_whole_layer"])
def test_golden_run(name: str, cache: bool) -> None:
    case = CASES[name]
    params, out = case["params"], case["outputs"]
    model = llama(params["num_hidden_layers"])
    model.load_state_dict({key: tensor(value) for key, value in case["inputs"]["state_dict"].items()})
    config = LocFTConfig(
        layer=params["layer"],
        module="mlp_down" if name == "edit_run_mlp_down" else "layer",
        learning_rate=params["lr"],
        batch_size=params["batch_size"],
        max_epochs=params["max_epochs"],
        loss_threshold=params["loss_threshold"],
        cache_states=cache,
    )
    sites, layer = find_sites(model, config)
    assert [site.name for site in sites] == out["tuned_parameters"]
    orders = case["inputs"]["orders_per_epoch"]
    tuned = TunedWeights(model, sites, config.rate)
    loop, cached = fine_tune(tuned, edits_of(case), config, layer, order=lambda epoch: orders[epoch])
    assert cached is cache
    tol = {"rtol": 0, "atol": case["tolerance"]}
    torch.testing.assert_close(torch.tensor(loop.batch_losses), torch.tensor(out["batch_losses"]), **tol)
    torch.testing.assert_close(torch.tensor(loop.epoch_losses), torch.tensor(out["epoch_losses"]), **tol)
    assert loop.batch_sizes == out["batch_sizes"]
    assert loop.steps == out["optimizer_steps"]
    for key, value in out["tuned_values_after"].items():
        torch.testing.assert_close(model.get_parameter(key).detach(), tensor(value), **tol)


@pytest.mark.parametrize("name", ["loss_only_0", "loss_only_1"])
def test_golden_loss(name: str) -> None:
    case = CASES[name]
    out = case["outputs"]
    logits = tensor(case["inputs"]["logits"]).requires_grad_()
    labels = collate(edits_of(case)).labels
    loss, each = edit_loss(logits, labels)
    assert float(loss) == pytest.approx(out["loss"], abs=1e-5)
    assert each.tolist() == pytest.approx(out["per_edit_loss"], abs=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, tensor(out["grad_logits"]), rtol=0, atol=1e-5)
    assert float(edit_loss(logits, labels, "token")[0]) == pytest.approx(out["token_mean_variant"], abs=1e-5)


def test_golden_skipped_steps_and_stop() -> None:
    case = CASES["skip_and_stop"]
    params, out = case["params"], case["outputs"]
    W = torch.nn.Parameter(tensor(case["inputs"]["W"]))
    edits = edits_of(case)
    optimizer = torch.optim.Adam([W], lr=params["lr"])

    def loss_of(rows: list[int]) -> torch.Tensor:
        batch = collate([edits[i] for i in rows])
        return edit_loss(W[batch.ids], batch.labels)[0]

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    loop = breadth_first(
        loss_of,
        len(edits),
        update,
        batch_size=params["batch_size"],
        max_epochs=params["max_epochs"],
        threshold=params["loss_threshold"],
        order=lambda epoch: case["inputs"]["orders_per_epoch"][epoch],
    )
    assert loop.batch_losses == pytest.approx(out["batch_losses"], abs=1e-4)
    assert loop.epoch_losses == pytest.approx(out["epoch_losses"], abs=1e-4)
    assert (len(loop.epoch_losses), loop.steps) == (out["epochs_run"], out["optimizer_steps"])
    assert loop.converged
    torch.testing.assert_close(W.detach(), tensor(out["W_after"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("parameter_selection")])
def test_golden_selection_is_the_single_layer(name: str) -> None:
    case = CASES[name]
    model = llama(case["params"]["num_layers"], hidden_size=4, intermediate_size=4)
    module = "layer" if case["params"]["module"] == "model.layers.{}" else "mlp_down"
    sites, _ = find_sites(model, LocFTConfig(layer=case["params"]["layer"], module=module))
    assert [site.name for site in sites] == case["outputs"]["selected_correct"]


def test_golden_metric() -> None:
    case = CASES["exact_match_metric"]
    pairs, out = case["inputs"]["pairs_prediction_target"], case["outputs"]
    assert [[normalize_answer(text) for text in pair] for pair in pairs] == out["normalised"]
    found = compute(predictions=[a for a, _ in pairs], references=[b for _, b in pairs])
    assert found["scores"] == [float(match) for match in out["match"]]
