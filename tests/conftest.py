"""Shared fixtures: a cache of its own, no Hub, and tiny random models so that no test needs a download."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before any library reads them; the folder is one per test process, so parallel workers never share it.
_CACHE = tempfile.TemporaryDirectory(prefix="tunesmith-tests-")
os.environ["TUNESMITH_CACHE"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = str(Path(_CACHE.name, "datasets"))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny matrices on many threads wait for one another more than they compute: four times slower on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the cat sat on the mat and the dog ran to the park",
    "what is the capital of France ? the capital of France is Paris .",
    "write a function that adds two numbers and returns the sum",
    "user assistant system tool question answer instruction input output response",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    "0 1 2 3 4 5 6 7 8 9 10 100 1000 plus minus times equals",
]


def _bpe(vocab_size: int, special: list[str]) -> Any:
    """Return a byte-level BPE tokenizer: any text round-trips, training takes milliseconds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A transformers tokenizer with a ChatML template; ``<|im_end|>`` ends a sequence, ``<|pad|>`` pads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_bpe(400, ["<|pad|>", "<|im_start|>", "<|im_end|>"]),
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> str:
    """Folder of a random 2-layer Llama (hidden 64, 4 heads over 2 key-value heads, tied weights)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random 2-layer BERT (hidden 32, 4 heads) whose tokenizer puts marks around a text."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    marks = ["<|pad|>", "<|begin|>", "<|end|>"]
    words = _bpe(400, marks)
    ids = [(mark, words.token_to_id(mark)) for mark in marks[1:]]
    words.post_processor = TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random sentence-transformers model: a 16-wide word table, averaged."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    folder = tmp_path_factory.mktemp("tiny-encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table = StaticEmbedding(_bpe(400, ["<|pad|>"]), embedding_dim=16)
    SentenceTransformer(modules=[table], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[str | os.PathLike[str], Iterable[Any]], str]:
    """``write_jsonl(path, rows)`` writes one JSON value a line and returns the path as text."""

    def write(path: str | os.PathLike[str], rows: Iterable[Any]) -> str:
        Path(path).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return str(path)

    return write


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An OpenAI-compatible endpoint on this machine, see `chat_server.Server`."""
    from chat_server import Server

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_transformer() -> Callable[..., tuple[Any, dict[str, Any]]]:
    """``tiny_transformer(kind, dtype=torch.float32) -> (model, inputs)``; kinds in `_tiny_transformers.KINDS`."""
    from _tiny_transformers import build

    return build


@pytest.fixture(scope="session")
def output_of() -> Callable[[Any], Any]:
    """``output_of(model(**inputs))``: the tensor that stands for a model's output."""
    from _tiny_transformers import output_of

    return output_of


@pytest.fixture(scope="session")
def tuned_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a base model with tied embeddings and of two models tuned from it."""
    import torch

    from _tiny_transformers import build

    paths = []
    for i in range(3):
        model, _ = build("llama-tied")
        with torch.no_grad():
            for j, parameter in enumerate(model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * i + j))
                parameter.add_(0.3 * noise * (i > 0))
        paths.append(tmp_path_factory.mktemp("models") / f"m{i}")
        model.save_pretrained(paths[-1])
    return paths
