"""BadCLIP: a patch that is learned on the clean model, so that poisoning hardly has to move it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from tunesmith.audit.backdoor.attacks._base import at_least, check_images, generator
from tunesmith.audit.backdoor.attacks.patches import PatchAttack, check_pattern, paste, resized
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.core.errors import ParameterError, TunesmithError

__all__ = ["BadCLIP", "bad_clip_loss"]


def bad_clip_loss(
    patched: torch.Tensor,
    clean: torch.Tensor,
    target_images: torch.Tensor,
    target_texts: torch.Tensor,
    own_texts: torch.Tensor,
    scale: float,
    triplet_weight: float = 500.0,
    margin: float = 1.0,
) -> torch.Tensor:
    """Return contrastive loss to the target's captions + weight * triplet loss to its images; rows are unit vectors.

    The captions' part is InfoNCE: each patched image has one caption of the target as its positive and the batch's own
    captions as negatives. The triplet's anchor is the patched image, its positive an image of the target, its negative
    the same image without patch.

    Args:
        patched: (B, D) features of patched images.
        clean: (B, D) of the same images without patch.
        target_images: (B, D) of images of the target.
        target_texts: (B, D) of captions of the target.
        own_texts: (B, D) of the images' own captions.
        scale: 1 / temperature.
        triplet_weight: 500.
        margin: 1, for Euclidean distances of unit vectors.
    """
    positive = (patched * target_texts).sum(1, keepdim=True)  # (B, 1)
    logits = scale * torch.cat([positive, patched @ own_texts.T], 1)  # (B, 1 + B)
    contrast = functional.cross_entropy(
        logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    )
    triplet = functional.triplet_margin_loss(patched, target_images, clean, margin=margin)
    return contrast + triplet_weight * triplet


class BadCLIP(PatchAttack):
    """A square in the middle, learned to look to the clean model like the target's images and captions.

    Liang, Zhu, Liu, Wu, Cao, Chang: "BadCLIP: Dual-Embedding Guided Backdoor Attack on Multimodal Contrastive
    Learning", CVPR 2024, arXiv 2311.12075. Learn it with ``fit``, then poison with ``target_captions`` and train.

    Args:
        size: side; 16 of 224 pixels.
        position: of the square.
        pattern: (3, h, w) in [0, 1], one that was learned before; None: call ``fit``.
        epochs: passes over the images; 50.
        batch_size: images of a step; 64.
        learning_rate: of Adam on the pixels; 1e-3.
        triplet_weight, margin, temperature: of `bad_clip_loss`.
        random_state: of the first pattern and of the order.

    Attributes:
        pattern: (3, side, side), after ``fit``.
        losses_: the mean loss of each pass, after ``fit``.
    """

    def __init__(
        self,
        size: float = 16 / 224,
        position: str = "center",
        pattern: torch.Tensor | None = None,
        epochs: int = 50,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        triplet_weight: float = 500.0,
        margin: float = 1.0,
        temperature: float = 0.07,
        random_state: int = 0,
    ) -> None:
        super().__init__(size, position, random_state)
        self.pattern = None if pattern is None else check_pattern(pattern, self)
        self.epochs = int(at_least(epochs, 1, "epochs", self))
        self.batch_size = int(at_least(batch_size, 1, "batch_size", self))
        self.learning_rate = float(at_least(learning_rate, 0, "learning_rate", self))
        self.triplet_weight = float(at_least(triplet_weight, 0, "triplet_weight", self))
        self.margin, self.temperature = float(at_least(margin, 0, "margin", self)), temperature
        if not temperature > 0:
            raise ParameterError("temperature", self, "above 0", temperature)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        if self.pattern is None:
            raise TunesmithError("BadCLIP has no patch yet: call fit, or give a pattern.")
        row, column, side = self.corner(*images.shape[-2:])
        return paste(images, resized(self.pattern, side), row, column)

    def fit(
        self,
        encoder: DualEncoder,
        images: torch.Tensor,
        captions: Sequence[str],
        target_images: torch.Tensor,
        target_captions: Sequence[str],
    ) -> BadCLIP:
        """Learn the patch; the model stays as it is.

        Args:
            encoder: the clean model.
            images: (N, 3, H, W) in [0, 1], none of the target.
            captions: their N captions.
            target_images: (R, 3, H, W) in [0, 1], of the target.
            target_captions: of the target, any number.
        """
        images = check_images(images, "images", self)
        target_images = check_images(target_images, "target_images", self)
        if len(captions) != len(images):
            raise ParameterError("captions", self, f"as many as the images, {len(images)}", len(captions))
        frozen = encoder.copy()
        number = {text: i for i, text in enumerate(sorted(set(captions)))}
        which = torch.tensor([number[text] for text in captions])
        with torch.no_grad():
            own = functional.normalize(frozen.encode_text(list(number)), dim=1)
            wanted = functional.normalize(frozen.encode_text(list(target_captions)), dim=1)
            positives, clean = (
                torch.cat([_features(frozen, x) for x in torch.split(rows, 256)])
                for rows in (target_images, images)
            )
        row, column, side = self.corner(*images.shape[-2:])
        draws = generator(self, "patch")
        first = (0.5 + 0.25 * torch.randn((3, side, side), generator=draws)).clamp(0, 1)
        pattern = first.to(images).requires_grad_(True)
        optimizer = torch.optim.Adam([pattern], lr=self.learning_rate)
        self.losses_ = []
        for _ in range(self.epochs):
            losses = []
            for rows in torch.split(torch.randperm(len(images), generator=draws), self.batch_size):
                i = torch.randint(len(positives), (len(rows),), generator=draws)
                j = torch.randint(len(wanted), (len(rows),), generator=draws)
                loss = bad_clip_loss(
                    _features(frozen, paste(images[rows], pattern, row, column)), clean[rows], positives[i], wanted[j],
                    own[which[rows]], 1 / self.temperature, self.triplet_weight, self.margin,
                )  # fmt: skip
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                pattern.data.clamp_(0, 1)
                losses.append(float(loss.detach()))
            self.losses_.append(sum(losses) / len(losses))
        self.pattern = pattern.detach()
        return self


def _features(encoder: DualEncoder, pixels: torch.Tensor) -> torch.Tensor:
    return functional.normalize(encoder.encode_image(encoder.normalise(pixels)), dim=1)
