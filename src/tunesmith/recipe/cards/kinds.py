"""What a folder of weights holds, and the code that loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import MissingModelError
from tunesmith.core.files import read_json
from tunesmith.recipe.cards.origins import Origin

__all__ = ["ModelKind", "kind_of", "loading_code"]

OURS = "TUNESMITH_"
_AUTO = (  # ending of the architecture, class of transformers, tag of the Hub
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
    ("CLIPModel", "AutoModel", "zero-shot-image-classification"),
    ("SiglipModel", "AutoModel", "zero-shot-image-classification"),
)
_TASKS = {"CAUSAL_LM": _AUTO[0], "SEQ_CLS": _AUTO[2]}


@dataclass(frozen=True)
class ModelKind:
    """What a folder holds.

    Attributes:
        name: ``adapter``, ``whole``, ``levi``, ``roste``, ``delta`` or ``weights``.
        what: in words.
        library: ``library_name`` of the card; None where no library loads it by itself.
        relation: ``base_model_relation`` of the card.
        loader: class of transformers that loads the model, or an adapter's base.
        task: ``pipeline_tag`` of the card.
        peft_type: of an adapter.
        base: an adapter's base as its config names it.
        chat: whether a chat template is there.
        classes: names of a classifier's outputs.
    """

    name: str
    what: str
    library: str | None
    relation: str | None
    loader: str = "AutoModel"
    task: str | None = None
    peft_type: str = ""
    base: str | None = None
    chat: bool = False
    classes: tuple[str, ...] = ()


def kind_of(folder: Path) -> ModelKind:
    """Look at a folder of weights.

    Raises:
        MissingModelError: it holds no weights in safetensors, or its config cannot be read.
    """
    chat = (folder / "chat_template.jinja").exists()
    if (folder / "adapter_config.json").exists():
        config = _json(folder / "adapter_config.json")
        kind, base = str(config.get("peft_type") or ""), config.get("base_model_name_or_path")
        _, loader, task = _TASKS.get(str(config.get("task_type")), ("", "AutoModel", None))
        title = {"LORA": "LoRA"}.get(kind, kind.removeprefix(OURS).replace("_", " "))
        what = f"{'an' if title[:1] in 'AEIOU' else 'a'} {title} adapter"
        return ModelKind(
            "adapter", what, "peft", "adapter", loader, task, kind, str(base) if base else None, chat
        )
    if (folder / "config.json").exists():
        config = _json(folder / "config.json")
        names = config.get("architectures") or [""]
        loader, task = next(
            ((load, tag) for end, load, tag in _AUTO if str(names[0]).endswith(end)), ("AutoModel", None)
        )
        labels = config.get("id2label") if task == "text-classification" else None
        classes = tuple(str(v) for v in labels.values()) if isinstance(labels, dict) else ()
        more: dict[str, Any] = {"chat": chat, "classes": classes}
        if config.get("model_type") == "levi":
            return ModelKind("levi", "a LEVI model", "tunesmith", "finetune", "LEVI", **more)
        if "roste" in config:
            what = "a model whose weights are trained for few bits (RoSTE)"
            return ModelKind("roste", what, "tunesmith", "quantized", "load_roste", task, **more)
        return ModelKind("whole", "a whole model", "transformers", "finetune", loader, task, **more)
    if (folder / "sparse_delta.safetensors").exists():
        return ModelKind(
            "delta", "a sparse difference of weights (LT-SFT)", "tunesmith", "adapter", "SparseDelta"
        )
    if any(folder.glob("*.safetensors")):
        return ModelKind("weights", "weights without a config", None, None)
    raise MissingModelError(
        f"The folder {folder} holds neither a run (events.jsonl) nor a model: none of adapter_config.json, config.json "
        "and *.safetensors is there. Give the directory of a run, or the folder that save_pretrained wrote."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise MissingModelError(f"The model's {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise MissingModelError(f"The model's {path} cannot be read: it holds no mapping of names to values.")
    return value


def loading_code(
    kind: ModelKind,
    folder: str,
    base: Origin | None,
    *,
    classes: tuple[str, ...] = (),
    revision: str | None = None,
) -> str:
    """Return Python code that loads the model and uses it once.

    Args:
        kind: of the folder.
        folder: how the code names it.
        base: the base model, for what needs one; a local one is named by the last part of its path.
        classes: of an adapter of a classifier: the outputs of the head that its base is given.
        revision: of the base.
    """
    where = f'folder = "{folder}"  # this folder, or the id of the repository that you put it in'
    name = "the base model" if base is None else base.hub_id if base.hub_id and not base.alias else base.name
    note = "  # its folder, which is not part of this one" if base is None or base.local else ""
    lines = [f'base = "{name}"{note}', where] if kind.name in ("adapter", "delta") else [where]
    at = f', revision="{revision}"' if revision else ""
    if kind.name == "weights":
        return "\n".join(
            [
                "from pathlib import Path",
                "from safetensors.torch import load_file",
                "",
                where,
                "weights = {path.name: load_file(path) for path in Path(folder).glob('*.safetensors')}",
            ]
        )
    bundled = base is not None and base.alias
    if kind.name == "adapter":
        imports, load = _adapter(kind, classes, at, bundled)
    elif kind.name == "delta":
        imports = [
            "from transformers import AutoModelForCausalLM",
            "from tunesmith.tuners import SparseDelta",
        ]
        load = [
            "# in the type that the difference was made in: dtype=..., where it is not that of the base's files",
            f"model = AutoModelForCausalLM.from_pretrained(base{at}).eval()",
            "SparseDelta.from_pretrained(folder).apply(model)  # refuses another base",
        ]
    elif kind.name == "levi":
        imports, load = ["from tunesmith.models import LEVI"], ["model = LEVI.from_pretrained(folder)"]
    elif kind.name == "roste":
        imports, load = ["from tunesmith.tuners import load_roste"], ["model = load_roste(folder).eval()"]
    else:
        imports = [f"from transformers import {kind.loader}"]
        load = [f"model = {kind.loader}.from_pretrained(folder).eval()"]
    use = _use(kind)
    if use:
        imports = _with_tokenizer(imports)
        lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    return "\n".join([*imports, "", *lines, *load, *([""] if use else []), *use])


def _with_tokenizer(imports: list[str]) -> list[str]:
    mine = "from transformers import "
    if any(line.startswith(mine) for line in imports):
        return [f"{line}, AutoTokenizer" if line.startswith(mine) else line for line in imports]
    theirs = [line for line in imports if line.startswith("from peft")]
    return [*theirs, f"{mine}AutoTokenizer", *(line for line in imports if line not in theirs)]


def _adapter(
    kind: ModelKind, classes: tuple[str, ...], at: str, bundled: bool
) -> tuple[list[str], list[str]]:
    """Return imports and the lines that load an adapter over its base."""
    imports = ["from peft import PeftModel"]
    own = kind.peft_type.startswith(OURS)
    first = ["register()  # makes tunesmith's methods known to PEFT"] if own else []
    register = ["from tunesmith.tuners import register"] if own else []
    wrapped = "PeftModel.from_pretrained({}, folder).eval()"
    if classes:
        imports += ["from tunesmith.trainers.classify import load_classifier_for", *register]
        load = [
            f"classes = {list(classes)!r}",
            f"model = {wrapped.format(f'load_classifier_for(base, classes{at})')}",
        ]
    elif bundled:
        imports += ["from tunesmith.engine.models import load_model", *register]
        load = [f"model = {wrapped.format('load_model(base)')}"]
    else:
        imports += [f"from transformers import {kind.loader}", *register]
        load = [f"model = {wrapped.format(f'{kind.loader}.from_pretrained(base{at})')}"]
    return imports, [*first, *load]


def _use(kind: ModelKind) -> list[str]:
    if kind.name in ("levi", "delta"):
        return []
    if kind.task == "text-classification":
        return [
            'logits = model(**tokenizer("A text to classify.", return_tensors="pt")).logits',
            "print(model.config.id2label[int(logits.argmax())])",
        ]
    if kind.task != "text-generation":
        return []
    ask = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
    if kind.chat:
        ask = (
            'chat = [{"role": "user", "content": "What can you do?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")"
        )
    return [
        *ask.split("\n"),
        "answer = model.generate(**inputs, max_new_tokens=40)[0, inputs['input_ids'].shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
