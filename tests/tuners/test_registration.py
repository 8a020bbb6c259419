"""Outside tuners as PEFT methods: the enumeration, the registration, and what a stranger sees."""

from __future__ import annotations

import copy
import enum
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunesmith.core.errors import TunesmithError
from tunesmith.tuners import _enums

SCRIPT = """
import copy, enum, pickle, sys
sys.path.insert(0, sys.argv[1])
from _enums import add_member
class Kind(str, enum.Enum):
    A = "A"
member = add_member(Kind, "B_C")
assert add_member(Kind, "B_C") is member and add_member(Kind, "A") is Kind.A
assert Kind("B_C") is member and Kind["B_C"] is member and Kind.B_C is member
assert list(Kind) == [Kind.A, member] and member.name == member.value == "B_C" and member == "B_C"
assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member
assert {member: 1}["B_C"] == 1 and {"B_C": 1}[member] == 1 and "B_C" in list(Kind) and isinstance(member, Kind)
print("held")
"""


class Kind(str, enum.Enum):  # noqa: UP042  (as PEFT's is)
    ONE = "ONE"


def test_a_member_is_added_once_and_found_in_every_way() -> None:
    member = _enums.add_member(Kind, "TWO")
    assert _enums.add_member(Kind, "TWO") is member
    assert Kind("TWO") is Kind["TWO"] is Kind.TWO is member  # type: ignore[attr-defined]
    assert list(Kind) == [Kind.ONE, member]
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert {member: 1}["TWO"] == 1


def _interpreter(version: str) -> str | None:
    """Return a Python of that version that starts: this one, one on the path, or one of pyenv's."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    candidates += map(
        str,
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}*/bin/python"),
    )
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, candidates):
        ran = subprocess.run([path, "-c", asked], capture_output=True, text=True, timeout=60)
        if ran.stdout.strip() == version:
            return path
    return None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_enumeration_on_each_python_that_is_here(version: str) -> None:
    """The file imports nothing but the standard library, so any interpreter can run it."""
    python = _interpreter(version)
    if python is None:
        pytest.skip(f"no python{version} on this machine")
    folder = _enums.__file__.rsplit("/", 1)[0]
    ran = subprocess.run([python, "-c", SCRIPT, folder], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "held", ran.stderr


def test_a_closed_class_that_is_no_enumeration_of_strings_is_refused() -> None:
    class Plain(enum.Enum):
        ONE = 1

    with pytest.raises(TypeError, match="Plain does not keep its members as enumerations of strings do"):
        _enums.add_member(Plain, "TWO")


@pytest.fixture(scope="module")
def gate() -> Any:
    """A whole outside tuner in forty lines: each linear layer's output times a learned gate."""
    import torch
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    from tunesmith.tuners._base import TunerConfig, linear_shape
    from tunesmith.tuners.registration import register_tuner

    @dataclass
    class GateConfig(TunerConfig):
        tuner_name: ClassVar[str] = "testgate"

    class Gate(torch.nn.Module, BaseTunerLayer):
        adapter_layer_names = ("testgate_g",)

        def __init__(self, base: Any, adapter: str) -> None:
            super().__init__()
            self.base_layer = base
            self.testgate_g = torch.nn.ParameterDict()
            self._disable_adapters, self.merged_adapters = False, []
            self.update_layer(adapter)

        def update_layer(self, adapter: str, **kwargs: Any) -> None:
            self.testgate_g[adapter] = torch.nn.Parameter(torch.ones(linear_shape(self.get_base_layer())[1]))
            self.set_adapter(self.active_adapters)

        def forward(self, x: Any) -> Any:
            y = self.base_layer(x)
            if not self.disable_adapters:
                for name in self.active_adapters:
                    y = y * self.testgate_g[name]
            return y

    class GateModel(BaseTuner):
        prefix = "testgate_"
        tuner_layer_cls = Gate
        target_module_mapping: ClassVar[dict[str, Any]] = {}

        def _create_and_replace(
            self, config: Any, adapter: str, target: Any, name: str, parent: Any, current_key: str, **kw: Any
        ) -> None:
            if isinstance(target, Gate):
                target.update_layer(adapter)
            else:
                self._replace_module(parent, name, Gate(target, adapter), target)

    register_tuner("testgate", GateConfig, GateModel)
    register_tuner("testgate", GateConfig, GateModel)  # again: nothing happens
    return GateConfig, GateModel


def test_an_outside_tuner_is_a_peft_method(gate: Any, tiny_transformer: Any, tmp_path: Any) -> None:
    import torch
    from peft import PeftModel, get_peft_model

    from tunesmith.tuners import peft_config, tuner_names

    assert "testgate" in tuner_names()
    config = peft_config("testgate", target_modules=["o_proj"])
    assert isinstance(config, gate[0])
    assert config.target_modules == {"o_proj"}
    model, inputs = tiny_transformer("llama")
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "testgate_g" in name:
                parameter.mul_(1.5)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "TUNESMITH_TESTGATE"
    again = PeftModel.from_pretrained(tiny_transformer("llama")[0], str(tmp_path))
    assert torch.equal(again(**inputs).logits, expected)


def test_a_name_that_is_taken_by_another_class_is_refused(gate: Any) -> None:
    from tunesmith.tuners.registration import register_tuner

    with pytest.raises(
        TunesmithError, match=r"The tuner 'testgate' cannot be registered with PEFT [\d.]+: .* already"
    ):
        register_tuner("testgate", type("Other", (gate[0],), {}), gate[1])


def test_a_peft_that_changed_its_ways_is_named(monkeypatch: pytest.MonkeyPatch, gate: Any) -> None:
    import peft.utils.peft_types

    from tunesmith.tuners.registration import register_tuner

    class Closed(enum.Enum):
        LORA = 1

    monkeypatch.setattr(peft.utils.peft_types, "PeftType", Closed)
    with pytest.raises(TunesmithError, match=r"tunesmith is tested with PEFT 0\.20 to 0\.21"):
        register_tuner("testother", *gate)


def test_peft_without_us_names_the_library(tmp_path: Any) -> None:
    """An adapter of ours in a program that knows only PEFT: its bare KeyError says whose the type is."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "TUNESMITH_MOSA"}))
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "KeyError: 'TUNESMITH_MOSA'" in ran.stderr
