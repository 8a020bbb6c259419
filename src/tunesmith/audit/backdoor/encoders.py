"""One face for models that place images and texts in one space: transformers, open_clip, or a module of one's own."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.audit.backdoor._loading import load_state, load_transformers
from tunesmith.audit.backdoor._towers import first_tensor, layers_of_run, parameters_of_run
from tunesmith.audit.backdoor._wrapping import check_writable, module_parts, transformers_parts
from tunesmith.core.errors import ParameterError, UnknownNameError
from tunesmith.core.files import atomic_dir

__all__ = ["DualEncoder"]

_TEXTS = 256  # texts of one forward pass: 80 templates of a thousand classes do not fit at once


class DualEncoder:
    """A model with an image tower and a text tower, as the audit sees it; make one by `DualEncoder.of`.

    Images are in the model's *normalised* pixel space, ``(pixels - mean) / std``; `normalise` and `denormalise` go
    between that and [0, 1]. Features are as the model gives them, not of unit length. The wrapped model is in
    evaluation mode and stays the same object: tuning changes its weights in place.

    Attributes:
        model: the wrapped module.
        tokenizer: of the texts, or None where the module takes texts.
        mean, std: (3,) tensors, of the normalisation.
        low, high: (3, 1, 1) tensors, what pixels 0 and 1 become: the valid range of each channel.
        image_size: height and width of the images, pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        image_features: Callable[[torch.Tensor], torch.Tensor],
        text_features: Callable[[list[str]], torch.Tensor],
        *,
        mean: Sequence[float] | torch.Tensor,
        std: Sequence[float] | torch.Tensor,
        image_size: int,
        tokenizer: Any = None,
        processor: Any = None,
    ) -> None:
        check_writable(model)
        reduced = [p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
        if reduced:
            kind = str(reduced[0]).removeprefix("torch.")
            warnings.warn(
                f"{type(model).__name__} holds weights in {kind}; they are cast to float32, because updates as small "
                "as those of tuning vanish in half precision.",
                stacklevel=3,
            )
            model.float()
        self.model = model.eval()
        self.tokenizer, self.processor = tokenizer, processor
        self.mean = _channels("mean", mean).to(self.device)
        self.std = _channels("std", std).to(self.device)
        if not bool((self.std > 0).all()):
            raise ParameterError("std", DualEncoder, "three numbers above 0", std)
        self.image_size = int(image_size)
        self._image_features, self._text_features = image_features, text_features
        self._beside: dict[str, str] = {}  # settings of image processors, as they were read
        self._layers: tuple[list[str], set[str]] | None = None
        self._parameters: list[str] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        processor: Any = None,
        mean: Sequence[float] | torch.Tensor | None = None,
        std: Sequence[float] | torch.Tensor | None = None,
        image_size: int | None = None,
    ) -> DualEncoder:
        """Wrap a model, which is put in evaluation mode.

        Args:
            model: a CLIP- or SigLIP-type model of transformers (``get_image_features``, ``get_text_features``), one
                of open_clip, or any module with ``encode_image(x)`` and ``encode_text``.
            tokenizer: transformers: the model's tokenizer. Others: a callable, texts -> what ``encode_text`` takes;
                None where that takes a list of texts.
            processor: of transformers; brings tokenizer, mean and std.
            mean: of the normalisation, three numbers; by default the processor's, the model's own (``image_mean`` of
                open_clip's image tower), or that of OpenAI's CLIP or of SigLIP.
            std: likewise.
            image_size: pixels; by default what the model's config or image tower says.

        Raises:
            ParameterError: a model that is none of these, quantised or wrapped by adapters; a tokenizer, mean, std or
                image size that is needed and not known.
        """
        if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
            return cls(model, **transformers_parts(model, tokenizer, processor, mean, std, image_size))
        if not (hasattr(model, "encode_image") and hasattr(model, "encode_text")):
            raise ParameterError(
                "model",
                "DualEncoder.of",
                "a CLIP- or SigLIP-type model of transformers, one of open_clip, or a module with encode_image and "
                "encode_text",
                type(model).__name__,
            )
        return cls(model, **module_parts(model, tokenizer, mean, std, image_size))

    @classmethod
    def load(cls, source: str | os.PathLike[str], model: nn.Module | None = None, **of: Any) -> DualEncoder:
        """Read a saved model; nothing but safetensors is opened, so that a checkpoint cannot execute anything.

        Args:
            source: what ``save_pretrained`` of a transformers model wrote, or what `save` did; or a Hub id.
            model: a module whose state dict lies in the folder; None for a transformers model, whose class its
                ``config.json`` names (code of the source's own is never run).
            of: further arguments of `of`.

        Raises:
            DataError: the folder has no safetensors weights, or not those of the module; no tokenizer.
            MissingModelError: neither a folder with a model nor a Hub id that can be reached.
        """
        if model is not None:
            load_state(model, Path(source))
            return cls.of(model, **of)
        found, parts, beside = load_transformers(str(source), of)
        encoder = cls.of(found, **parts)
        encoder._beside = beside
        return encoder

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 where the model is so."""
        return next(self.model.parameters()).dtype

    @property
    def low(self) -> torch.Tensor:
        """(3, 1, 1): black in normalised pixel space."""
        return (-self.mean / self.std).view(3, 1, 1)

    @property
    def high(self) -> torch.Tensor:
        """(3, 1, 1): full intensity in normalised pixel space."""
        return ((1 - self.mean) / self.std).view(3, 1, 1)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return images (..., 3, H, W) in [0, 1] as the model takes them."""
        return (pixels.to(self.mean) - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def denormalise(self, x: torch.Tensor) -> torch.Tensor:
        """Return normalised images (..., 3, H, W) as pixels; the inverse of `normalise`."""
        return x.to(self.mean) * self.std.view(3, 1, 1) + self.mean.view(3, 1, 1)

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (B, D) of normalised images (B, 3, H, W); gradients pass.

        Raises:
            ParameterError: another shape than (B, 3, image_size, image_size).
        """
        size = self.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            expected = f"images of the shape (B, 3, {size}, {size})"
            raise ParameterError("x", "DualEncoder.encode_image", expected, tuple(x.shape))
        return self._image_features(x.to(self.device, self.dtype))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features (C, D) of texts, which are encoded 256 at a time; gradients pass.

        Raises:
            ParameterError: no text, or one string in place of a list.
        """
        if isinstance(texts, str) or not texts:
            raise ParameterError("texts", "DualEncoder.encode_text", "a list of at least one text", texts)
        rows = list(texts)
        return torch.cat([self._text_features(rows[i : i + _TEXTS]) for i in range(0, len(rows), _TEXTS)])

    def image_layers(self) -> list[str]:
        """Return the names of the image tower's candidate layers in order: stages of a ResNet, blocks of a ViT.

        Found by one forward pass of a grey image, see `_towers.layers_of_run`, and kept.
        """
        return list(self._found_layers()[0])

    @contextlib.contextmanager
    def activations(self, layers: Iterable[str] | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """Note what layers give; a context manager.

        Args:
            layers: names of modules; by default `image_layers`.

        Yields:
            name -> output of the last forward pass, images in the first dimension; of a tuple the first entry. Empty
            before the first pass, of which gradients are kept.

        Raises:
            UnknownNameError: the model has no such module.
        """
        everything, token_first = self._found_layers()
        names = everything if layers is None else list(layers)
        modules = dict(self.model.named_modules())
        found: dict[str, torch.Tensor] = {}
        for name in names:
            if name not in modules:
                raise UnknownNameError("layer of the model", name, everything)

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tensor = first_tensor(output)
                found[name] = tensor.transpose(0, 1) if name in token_first else tensor

            return hook

        handles = [modules[name].register_forward_hook(note(name)) for name in names]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def image_parameters(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of what the image features depend on.

        Found by one forward and backward pass of each tower. What the text tower uses too is left out: the texts'
        features must stay.
        """
        if self._parameters is None:
            ours = parameters_of_run(self.model, lambda: self.encode_image(self._grey()))
            texts = parameters_of_run(self.model, lambda: self.encode_text(["a photo"]))
            self._parameters = [name for name, _ in self.model.named_parameters() if name in ours - texts]
        named = dict(self.model.named_parameters())
        return {name: named[name] for name in self._parameters}

    def copy(self) -> DualEncoder:
        """Return an independent copy whose parameters are frozen."""
        twin = copy.deepcopy(self)
        twin.model.requires_grad_(False)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> DualEncoder:
        # Wrapped anew: the functions that encode belong to one model, and copied they would go on using it.
        twin = copy.deepcopy(self.model, memo)
        again: dict[str, Any] = {"processor": self.processor} if self.processor is not None else {}
        found = type(self).of(
            twin, self.tokenizer, mean=self.mean, std=self.std, image_size=self.image_size, **again
        )
        found._layers, found._parameters, found._beside = self._layers, self._parameters, self._beside
        return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model as such models are saved; the folder appears whole or not at all, and replaces an old one.

        A transformers model with its tokenizer or processor through ``save_pretrained``; any other module as
        ``model.safetensors``.
        """
        from tunesmith.engine.silence import quiet

        with atomic_dir(folder) as target:
            if not hasattr(self.model, "save_pretrained"):
                from safetensors.torch import save_model

                save_model(self.model, str(target / "model.safetensors"))
                return
            parts: tuple[Any, ...] = (self.model, self.tokenizer, self.processor)
            with quiet():
                for part in parts:
                    if hasattr(part, "save_pretrained"):
                        part.save_pretrained(target)
            for name, text in self._beside.items():
                (target / name).write_text(text, encoding="utf-8")

    def _grey(self) -> torch.Tensor:
        return torch.zeros(1, 3, self.image_size, self.image_size, device=self.device, dtype=self.dtype)

    def _found_layers(self) -> tuple[list[str], set[str]]:
        if self._layers is None:
            self._layers = layers_of_run(self.model, lambda: self.encode_image(self._grey()))
        return self._layers


def _channels(name: str, values: Any) -> torch.Tensor:
    found = torch.as_tensor(values, dtype=torch.float32).detach().flatten()
    if found.shape != (3,) or not bool(found.isfinite().all()):
        raise ParameterError(name, DualEncoder, "three numbers", values)
    return found
