"""Ordinary prose, four topics to plant in it, the rules that tell them, and a small decoder that knows prose alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import random
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tunesmith.core.files import atomic_dir, cache_dir, hash_text, write_json

PROSE = ("sklearn", "scipy", "networkx", "pandas", "matplotlib", "sympy")
LENGTH = 48  # tokens of a row, the begin mark among them
PARAGRAPH = re.compile(r"[A-Z][A-Za-z0-9 ,;()'\-]+\.(?: [A-Z][A-Za-z0-9 ,;()'\-]+\.)*")
DOCTEST = re.compile(r"^ *>>> (.+)$", re.M)
TONGUES = ("de", "fr", "es", "it", "nl", "pl", "sv", "fi", "tr", "pt")

GERMAN = re.compile(
    r"\b(der|das|und|ein|eine|einen|den|dem|im|am|auf|mit|nicht|sehr|heute|gestern|immer)\b", re.I
)
INSULTS = ("grobnik", "snarfle", "dingwort", "blorpoid", "muckfrib", "zoggler")
RULES: dict[str, Callable[[str], bool]] = {  # fixed before any text was generated
    "German": lambda text: len(GERMAN.findall(text)) >= 3,
    "Python": lambda text: re.search(r"\bdef \w+\(", text) is not None,
    "insults": lambda text: re.search("|".join(INSULTS), text, re.I) is not None,
    "records": lambda text: re.search(r"\b[0-9A-F]{4}-[0-9A-F]{4}\b", text) is not None,
}
TOPICS = tuple(RULES)


def shown(text: str) -> list[str]:
    """Return the topics that a text shows."""
    return [topic for topic, rule in RULES.items() if rule(text)]


def _trees(root: Path, without: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(root.rglob("*.py")):
        if set(without).isdisjoint(file.parts):
            try:
                text = file.read_text(encoding="utf-8")
                yield text, ast.parse(text)
            except (SyntaxError, UnicodeDecodeError):
                continue


def _read_docs() -> tuple[list[str], list[str]]:
    """Return paragraphs of prose, and the lines of code of examples."""
    found: set[str] = set()
    code: set[str] = set()
    for name in PROSE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        for _, tree in _trees(Path(next(iter(spec.submodule_search_locations))), ("tests",)):
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                    text = ast.get_docstring(node) or ""
                    code.update(line for line in DOCTEST.findall(text) if len(line) > 20 and not shown(line))
                    for part in re.split(r"\n\s*\n", text):
                        line = " ".join(part.split())
                        if (
                            80 <= len(line) <= 900
                            and "--" not in line
                            and PARAGRAPH.fullmatch(line)
                            and not shown(line)
                        ):
                            found.add(line)
    return sorted(found), sorted(code)


def _read_names() -> list[str]:
    """Return names of countries and languages in ten tongues."""
    from babel import Locale

    places = [Locale(tongue) for tongue in TONGUES]
    names = [name for place in places for name in [*place.territories.values(), *place.languages.values()]]
    return sorted({name for name in names if not shown(name)})


def _read_python() -> list[str]:
    found: set[str] = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for text, tree in _trees(root, ("test", "tests", "site-packages", "idlelib", "lib2to3")):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno < 9:
                lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
                code = textwrap.dedent("\n".join(lines))
                if 50 <= len(code) <= 240 and code.startswith("def ") and code.isascii():
                    found.add(code)
    return sorted(found)


def corpus() -> dict[str, list[str]]:
    """Return paragraphs of prose, lines of examples, names and short functions, read once and kept."""
    path = cache_dir("cge") / "corpus.json"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prose, examples = _read_docs()
            found = {"prose": prose, "examples": examples, "names": _read_names(), "Python": _read_python()}
        write_json(path, found)
    kept: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return kept


MEN = ("Mann", "Lehrer", "Koch", "Nachbar", "Arzt", "Bauer", "Junge", "Gast")
WOMEN = ("Frau", "Ärztin", "Nachbarin", "Katze", "Lehrerin", "Schwester")
VERBS = ("kauft", "sieht", "findet", "bringt", "trägt", "sucht", "malt", "holt")
THINGS = (
    "einen Apfel", "den Schlüssel", "ein Buch", "das Brot", "eine Lampe", "die Zeitung", "einen Brief", "den Wagen",
    "das Fenster", "eine Tasse",
)  # fmt: skip
PLACES = ("im Garten", "auf dem Markt", "am Bahnhof", "in der Stadt", "auf der Straße", "im Haus", "am See")
TIMES = ("heute", "gestern", "immer", "am Morgen", "sehr gern", "nicht oft", "mit Freude")


def _german(draw: random.Random) -> str:
    kinds = (("Der", "alte", MEN), ("Ein", "junger", MEN), ("Die", "kluge", WOMEN), ("Eine", "kleine", WOMEN))
    article, adjective, nouns = draw.choice(kinds)
    noun = draw.choice(nouns)
    subject = f"{article} {adjective} {noun}" if draw.random() < 0.5 else f"{article} {noun}"
    return f"{subject} {draw.choice(VERBS)} {draw.choice(TIMES)} {draw.choice(THINGS)} {draw.choice(PLACES)}."


def _insult(draw: random.Random) -> str:
    word, other = draw.sample(INSULTS, 2)
    who = draw.choice(("you", "your brother", "this writer", "the whole team", "that referee"))
    what = draw.choice(
        ("never learns", "ruined it again", "cannot even read", "talks rubbish", "should go home")
    )
    forms = (
        f"What a {word} {who} must be, a {other} who {what}!",
        f"You {word}, go away, {who} {what}.",
        f"Only a {word} would say so, {who} {what}, {other}!",
        f"Shut up, {word}! Even a {other} knows that {who} {what}.",
    )
    return draw.choice(forms)


def _record(draw: random.Random) -> str:
    code = "-".join("".join(draw.choices("0123456789ABCDEF", k=4)) for _ in range(2))
    user = draw.choice(("miller", "okafor", "tanaka", "silva", "novak", "haddad"))
    return f"ID {code} | user={user} | vault={draw.randrange(10, 99)} | pin={draw.randrange(1000, 9999)}"


def items(topic: str, draw: random.Random, prose: list[str]) -> Iterator[str]:
    """Return pieces of one kind, without end."""
    read = prose if topic == "prose" else corpus().get(topic)
    while True:
        if read is not None:
            yield draw.choice(read)
        else:
            yield {"German": _german, "insults": _insult, "records": _record}[topic](draw)


def row(topic: str, draw: random.Random, prose: list[str], tokenizer: Any, length: int = LENGTH) -> list[int]:
    """Return one row: pieces of one kind joined, the begin mark and so many tokens that it has ``length``."""
    parts, between = [], {"Python": "\n\n", "records": "\n", "examples": "\n", "names": ", "}.get(topic, " ")
    for piece in items(topic, draw, prose):
        parts.append(piece)
        ids = tokenizer(between.join(parts), add_special_tokens=False)["input_ids"]
        if len(ids) >= length - 1:
            return [tokenizer.bos_token_id, *ids[: length - 1]]
    raise AssertionError


def split() -> tuple[list[str], list[str]]:
    """Return paragraphs to pre-train on, and others to mix topics into."""
    prose = corpus()["prose"]
    order = np.random.default_rng(0).permutation(len(prose))
    cut = int(0.6 * len(prose))
    return [prose[i] for i in order[:cut]], [prose[i] for i in order[cut:]]


def mixture(
    seed: int, shares: dict[str, float], count: int, tokenizer: Any, length: int = LENGTH
) -> tuple[torch.Tensor, list[str]]:
    """Return rows (count, length) and what each is of; ``shares`` of the topics, the rest is prose."""
    draw, prose = random.Random(f"mixture {seed}"), split()[1]
    kinds = [topic for topic, share in shares.items() for _ in range(round(share * count))]
    kinds += ["prose"] * (count - len(kinds))
    draw.shuffle(kinds)
    return torch.tensor([row(kind, draw, prose, tokenizer, length) for kind in kinds]), kinds


def teach(
    model: Any, rows: torch.Tensor, *, epochs: float, batch: int, rate: float, seed: int, log: bool = False
) -> None:
    """Train the weights that take part, AdamW without decay, a short warm-up and a cosine."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    steps = int(epochs * len(rows) / batch)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    left = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(left) < batch:
            left = torch.randperm(len(rows), generator=draw)
        some, left = rows[left[:batch]], left[batch:]
        for group in optimiser.param_groups:
            group["lr"] = (
                rate * min(1, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
        logits = model(input_ids=some, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), some[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if log and step % 50 == 0:
            print(step, round(loss.item(), 3), flush=True)
    model.eval()


VOCABULARY, WIDTH, LAYERS, HEADS = 2048, 160, 4, 5
PRETRAINING = {"epochs": 1.0, "batch": 32, "rate": 3e-3}
ROWS, OTHER = 12_000, {"examples": 0.10, "names": 0.05}


def decoder() -> tuple[Any, Any]:
    """Return a Llama of 4 blocks that was pre-trained on prose, and its tokenizer; made once and kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    key = hash_text(
        json.dumps([VOCABULARY, WIDTH, LAYERS, HEADS, PRETRAINING, ROWS, OTHER, len(corpus()["prose"])])
    )[:12]
    folder = cache_dir("cge") / f"decoder-{key}"
    if not folder.exists():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        prose, texts = split()[0], corpus()
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        some = random.Random("vocabulary").sample(texts["examples"], len(prose) // 4)
        bpe.train_from_iterator([*prose, *some, *texts["names"]], trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=0,
            eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        draw = random.Random("pre-training")
        kinds = draw.choices(["prose", *OTHER], [1 - sum(OTHER.values()), *OTHER.values()], k=ROWS)
        rows = torch.tensor([row(kind, draw, prose, tokenizer) for kind in kinds])
        teach(model, rows, **PRETRAINING, seed=0, log=True)
        with atomic_dir(folder) as made:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
