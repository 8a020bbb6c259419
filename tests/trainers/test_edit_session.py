"""Edits that arrive over time: commits, contradictions, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.trainers import EditSession, edit
from tunesmith.tuners import LocFTConfig

ROWS = [
    {"prompt": f"the capital of {place} is", "target_new": answer}
    for place, answer in (("mat", "cat"), ("park", "two"), ("dog", "sum"), ("city", "plus"))
]
CONFIG = LocFTConfig(layer=1, learning_rate=1e-2, batch_size=2, max_epochs=3)
NAME = "model.layers.1.mlp.down_proj.weight"


def fresh(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def weight(model: Any) -> torch.Tensor:
    return model.get_parameter(NAME).detach().clone()


def test_commits_do_not_depend_on_how_the_edits_were_split(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    once, session_model = fresh(tiny_model_dir), fresh(tiny_model_dir)
    edit(once, tiny_tokenizer, ROWS, CONFIG)
    session = EditSession(session_model, tiny_tokenizer, CONFIG)
    assert session.add(ROWS[0]) == 1
    session.commit()
    assert session.add(ROWS[1:]) == 3
    assert session.commit().edits == ROWS == session.edits
    assert torch.equal(weight(once), weight(session_model))


def test_going_on_from_the_weights_as_they_are(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    model = fresh(tiny_model_dir)
    session = EditSession(model, tiny_tokenizer, CONFIG, restart=False)
    session.add(ROWS[:2])
    first = session.commit()
    session.add(ROWS[2:])
    second = session.commit()
    by_hand = fresh(tiny_model_dir)
    edit(by_hand, tiny_tokenizer, ROWS[:2], CONFIG)
    edit(by_hand, tiny_tokenizer, ROWS, CONFIG)
    assert torch.equal(weight(model), weight(by_hand))
    assert not torch.equal(first.before[NAME], second.before[NAME])


def test_commits_are_undone_one_by_one_bit_for_bit(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    model = fresh(tiny_model_dir)
    session = EditSession(model, tiny_tokenizer, CONFIG)
    states = [weight(model)]
    for rows in (ROWS[:2], ROWS[2:]):
        session.add(rows)
        session.commit()
        states.append(weight(model))
    waiting = {"prompt": "new", "target_new": "fact"}
    session.add(waiting)
    assert session.undo() == ROWS[2:]
    assert torch.equal(weight(model), states[1])
    assert session.edits == ROWS[:2]
    assert session.pending == [waiting]
    assert session.undo() == ROWS[:2]
    assert torch.equal(weight(model), states[0])
    with pytest.raises(TrainingError, match="There is no commit to undo"):
        session.undo()
    session.commit()
    session.reset()
    assert torch.equal(weight(model), states[0])
    assert session.edits == session.pending == []


def test_contradictions_are_noticed_when_they_arrive(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    other = {**ROWS[0], "target_new": "dog"}
    session = EditSession(fresh(tiny_model_dir), tiny_tokenizer, CONFIG)
    session.add(ROWS[:2])
    with pytest.raises(DataError, match="rows 0 and 2 want 'cat' and 'dog'"):
        session.add(other)
    assert session.pending == ROWS[:2]
    newest = EditSession(fresh(tiny_model_dir), tiny_tokenizer, CONFIG, conflicts="newest")
    newest.add(ROWS[:2])
    newest.commit()
    newest.add(other)
    assert newest.commit().edits == [ROWS[1], other]
    with pytest.raises(ParameterError, match="'conflicts' parameter"):
        EditSession(fresh(tiny_model_dir), tiny_tokenizer, CONFIG, conflicts="oldest")


def test_a_commit_that_fails_leaves_everything_as_it_was(tiny_model_dir: str, tiny_tokenizer: Any) -> None:
    model = fresh(tiny_model_dir)
    session = EditSession(model, tiny_tokenizer, CONFIG)
    with pytest.raises(TrainingError, match="There is nothing to commit: add edits first"):
        session.commit()
    session.add(ROWS[:2])
    session.commit()
    written = weight(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    session.add(ROWS[2:])
    with pytest.raises(TrainingError, match="the loss is nan"):
        session.commit()
    assert torch.equal(weight(model), written)
    assert session.pending == ROWS[2:]
    assert session.edits == ROWS[:2]
