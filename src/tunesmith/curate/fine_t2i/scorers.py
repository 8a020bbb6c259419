"""What the pipeline may be given to write, judge and score with; anything callable of the same form will do.

===========  =====================================  ==========================================================
role         called with                            returns one a row
===========  =====================================  ==========================================================
writer       cells of the grid                      a prompt
embedder     texts                                  a vector of length 1
safety       texts                                  true where safe (or a reply that says so)
attributes   rows (text, category, style, tasks)    true where the text fits its labels (or a reply)
enhancer     texts                                  a longer text
generator    texts, sizes, seeds                    an image of that size
aesthetic    images                                 a number, higher is better
alignment    texts, images                          true or a reply (binary judge), or a similarity (graded)
===========  =====================================  ==========================================================

A scorer with a text ``fingerprint`` (what its scores depend on) has them kept on disk, so that a run that is killed
goes on. One with ``range = (low, high)`` has thresholds checked against it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, MissingModelError
from tunesmith.core.files import hash_text
from tunesmith.curate.fine_t2i.grid import Cell
from tunesmith.engine import Failure, ask, open_llm

__all__ = ["CLIPAlignment", "ChatJudge", "ChatWriter", "Sharpness", "TemplateWriter"]

_FORMS = {
    "opener": "It begins with the words 'a photo of' or the like.",
    "request": "It is a polite request.",
    "sentences": "It is one flowing sentence, or several.",
    "quality tags": "It is a core sentence followed by tags of quality.",
    "keywords": "It is a list of keywords separated by commas.",
}
_POSES = {
    "reasoning": "needs a spatial relation to be worked out",
    "position": "says where things stand relative to one another",
    "colour": "gives different things different colours",
    "counting": "says how many there are of each thing",
}


class ChatWriter:
    """Prompts by a language model, one for each cell of the grid.

    Args:
        llm: a callable on chats, a model's id, or the arguments of one (see `tunesmith.engine.open_llm`).
        temperature: of the draw; the paper has 1.4 (with top-p 0.8, which a local model here does not offer).
        max_new_tokens: longest prompt in tokens.
    """

    def __init__(self, llm: Any, temperature: float = 1.4, max_new_tokens: int = 200) -> None:
        self.llm, self.temperature, self.max_new_tokens = llm, temperature, max_new_tokens

    def __call__(self, cells: Sequence[Cell]) -> list[str]:
        """Return a prompt for each cell; empty where the model gave none."""
        chats = [[{"role": "user", "content": self.request(cell)}] for cell in cells]
        replies = ask(
            open_llm(self.llm, self),
            chats,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seeds=[cell.seed for cell in cells],
        )
        return ["" if isinstance(r, Failure) else r.strip().strip('"').strip() for r in replies]

    @staticmethod
    def request(cell: Cell) -> str:
        """Return what the model is asked."""
        poses = " and ".join(_POSES.get(task, f"is about {task}") for task in cell.tasks)
        return (
            f"Write one prompt for an image generator. It shows: {cell.category}. Its style: {cell.style}. "
            f"It {poses}. {_FORMS.get(cell.template, cell.template)} Reply with the prompt alone."
        )


class TemplateWriter:
    """Prompts by fill-in sentences: no model, for trying a pipeline out. Not varied enough to train on."""

    fingerprint = "template-1"
    _THINGS = (
        "lantern",
        "bicycle",
        "teapot",
        "umbrella",
        "owl",
        "violin",
        "suitcase",
        "cactus",
        "kite",
        "clock",
    )
    _COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple")
    _PLACES = ("left of", "right of", "above", "below", "behind", "in front of")
    _NUMBERS = ("one", "two", "three", "four", "five", "six")
    _LIGHTS = ("at dawn", "at noon", "at dusk", "by candlelight", "in fog", "under a clear sky")

    def __call__(self, cells: Sequence[Cell]) -> list[str]:
        """Return a prompt for each cell."""
        return [self._one(cell) for cell in cells]

    def _one(self, cell: Cell) -> str:
        rng = np.random.default_rng(cell.seed)

        def pick(words: Sequence[str]) -> str:
            return words[int(rng.integers(len(words)))]

        a, b = (self._THINGS[int(i)] for i in rng.choice(len(self._THINGS), 2, replace=False))
        if "colour" in cell.tasks:
            a, b = f"{pick(self._COLOURS)} {a}", f"{pick(self._COLOURS)} {b}"
        if "counting" in cell.tasks:
            a, b = f"{pick(self._NUMBERS)} {a}(s)", f"{pick(self._NUMBERS)} {b}(s)"
        relation = pick(self._PLACES) if "position" in cell.tasks else "with"
        if "reasoning" in cell.tasks:
            b += f" {pick(self._PLACES)} a mirror"
        core = f"{cell.category} {relation} {b}, {a} {pick(self._LIGHTS)}, {cell.style}"
        return {
            "opener": f"a photo of {core}",
            "request": f"Please draw {core} for me",
            "sentences": f"There is {core}. Nothing else is to be seen.",
            "quality tags": f"{core}, highly detailed, sharp focus",
            "keywords": ", ".join([cell.category, a, b, relation, cell.style]),
        }.get(cell.template, core)


class ChatJudge:
    """A yes or no by a language model, about a text or about a row; what it cannot read counts as no.

    Args:
        llm: as for `ChatWriter`.
        question: what is asked; the text, or the row as JSON, follows it.
        max_new_tokens: longest reply in tokens.
    """

    def __init__(self, llm: Any, question: str, max_new_tokens: int = 16) -> None:
        self.llm, self.question, self.max_new_tokens = llm, question, max_new_tokens

    def __call__(self, items: Sequence[Any]) -> list[str]:
        """Return the replies; `parse_verdict` reads them."""
        shown = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
        chats = [
            [{"role": "user", "content": f"{self.question} Answer yes or no.\n\n{text}"}] for text in shown
        ]
        replies = ask(open_llm(self.llm, self), chats, max_new_tokens=self.max_new_tokens)
        return ["" if isinstance(r, Failure) else r for r in replies]


class Sharpness:
    """Variance of the Laplacian of the grey image (0 to 255): low for blurred, flat and empty images.

    A stand-in for an aesthetic model where there is none. Its scale is its own; set the threshold by a quantile of
    images that you trust.
    """

    fingerprint = "sharpness-1"
    range = (0.0, float("inf"))

    def __call__(self, images: Sequence[Any]) -> list[float]:
        """Return one number >= 0 an image."""
        found = []
        for image in images:
            x = np.asarray(image.convert("L"), dtype=np.float64)
            if min(x.shape) < 3:
                found.append(0.0)
                continue
            inner = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
            found.append(float(inner.var()))
        return found


class CLIPAlignment:
    """Cosine of a prompt and its image under a CLIP-type model in a local folder (or of the Hub).

    Any transformers model that returns ``text_embeds`` and ``image_embeds`` (CLIP, SigLIP, AltCLIP …). Images are
    scaled, cut and normalised as the folder's ``preprocessor_config.json`` says. Prompts longer than the model's
    positions are cut; CLIP sees 77 tokens. Time: one forward pass a row; memory: the model and one batch.

    Args:
        model: folder or Hub id.
        batch_size: rows a forward pass.
        device: where the model is put; by default the GPU if there is one.

    Raises:
        MissingModelError: when first called, the model cannot be found.
    """

    range = (-1.0, 1.0)

    def __init__(self, model: str, batch_size: int = 32, device: str | None = None) -> None:
        self.model, self.batch_size, self.device = model, batch_size, device
        self._parts: tuple[Any, Any, dict[str, Any]] | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files."""
        from tunesmith.engine.models import model_fingerprint

        return hash_text("clip", model_fingerprint(self.model))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}  # a copy loads the model itself

    def __call__(self, texts: Sequence[str], images: Sequence[Any]) -> NDArray[np.float64]:
        """Return the cosines, float64 ``(b,)``."""
        import torch

        model, tokenizer, settings = self._loaded()
        out = np.empty(len(texts))
        limit = getattr(model.config.text_config, "max_position_embeddings", 77)
        for begin in range(0, len(texts), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            ids = tokenizer(
                list(texts[part]), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            pixels = torch.from_numpy(np.stack([_pixels(image, settings) for image in images[part]]))
            with torch.inference_mode():
                found = model(
                    input_ids=ids["input_ids"].to(model.device),
                    attention_mask=ids["attention_mask"].to(model.device),
                    pixel_values=pixels.to(model.device, model.dtype),
                )
                a, b = (
                    torch.nn.functional.normalize(v.float(), dim=-1)
                    for v in (found.text_embeds, found.image_embeds)
                )
                out[part] = (a * b).sum(dim=-1).cpu().double().numpy()
        return out

    def _loaded(self) -> tuple[Any, Any, dict[str, Any]]:
        if self._parts is None:
            from transformers import AutoModel, AutoTokenizer

            from tunesmith.engine.models import default_device

            try:
                model = AutoModel.from_pretrained(self.model).to(self.device or default_device()).eval()
                tokenizer = AutoTokenizer.from_pretrained(self.model)
            except (OSError, ValueError) as error:
                raise MissingModelError(
                    f"There is no CLIP-type model in '{self.model}': {str(error).splitlines()[0]}"
                ) from error
            if not hasattr(model.config, "vision_config") or not hasattr(model.config, "text_config"):
                raise MissingModelError(
                    f"The model in '{self.model}' has no towers for text and images; a CLIP-type model is needed."
                )
            self._parts = model, tokenizer, _settings(self.model, model.config.vision_config.image_size)
        return self._parts


def _settings(folder: str, size: int) -> dict[str, Any]:
    """Return how images are prepared; what the folder leaves open is as CLIP has it."""
    values: dict[str, Any] = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_center_crop": True,
        "do_normalize": True,
    }
    path = Path(folder, "preprocessor_config.json")
    if path.exists():
        try:
            values |= json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"it is not JSON: {error}", source=str(path)) from error
    return {**values, "side": size}


def _pixels(image: Any, settings: dict[str, Any]) -> NDArray[np.float32]:
    """Return (3, side, side): the short side scaled to ``side``, the middle cut out (or squashed), normalised."""
    from PIL import Image

    side, image = settings["side"], image.convert("RGB")
    if settings["do_center_crop"]:
        scale = side / min(image.size)
        width, height = (max(side, round(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    else:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    x = np.asarray(image, dtype=np.float32) / 255
    if settings["do_normalize"]:
        x = (x - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return np.ascontiguousarray(x.transpose(2, 0, 1), dtype=np.float32)
