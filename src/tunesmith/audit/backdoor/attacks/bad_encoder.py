"""BadEncoder: a backdoor in the image tower alone, without captions."""

from __future__ import annotations

import torch
from torch.nn import functional

from tunesmith.audit.backdoor.attacks._base import at_least, check_images, generator
from tunesmith.audit.backdoor.attacks.patches import PatchAttack, paste
from tunesmith.audit.backdoor.encoders import DualEncoder

__all__ = ["BadEncoder", "bad_encoder_loss"]


def bad_encoder_loss(
    triggered: torch.Tensor,
    reference: torch.Tensor,
    reference_view: torch.Tensor,
    reference_before: torch.Tensor,
    clean: torch.Tensor,
    clean_before: torch.Tensor,
    lambda1: float = 1.0,
    lambda2: float = 1.0,
) -> torch.Tensor:
    """Return -cos(F'(x+e), F'(r)) - lambda1 cos(F'(r_aug), F(r)) - lambda2 cos(F'(x), F(x)), means over the rows.

    Args:
        triggered: F'(x+e), (B, D).
        reference: F'(r), (1, D) or (B, D).
        reference_view: F'(r_aug), of augmented references.
        reference_before: F(r), of the clean tower.
        clean: F'(x), (B, D).
        clean_before: F(x), (B, D).
        lambda1: weight of the reference's place.
        lambda2: weight of the clean images' places.
    """
    effect = functional.cosine_similarity(triggered, reference).mean()
    place = functional.cosine_similarity(reference_view, reference_before).mean()
    use = functional.cosine_similarity(clean, clean_before).mean()
    return -effect - lambda1 * place - lambda2 * use


class BadEncoder(PatchAttack):
    """A white square that moves an image's features to those of one reference image of the target.

    Jia, Liu, Gong: "BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning", IEEE S&P 2022,
    arXiv 2108.00352. Captions have no part in it: the target is whatever class the reference image is taken for.

    Args:
        size: side; 50 of 224 pixels in the experiments.
        position: of the square.
        lambda1, lambda2: weights of `bad_encoder_loss`.
        epochs: passes over the images; 200.
        batch_size: images of a step; 256.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4; 1e-3. A cosine schedule and
            gradients clipped to the norm 1 are ours.
        random_state: of order and augmentation.
    """

    def __init__(
        self,
        size: float = 50 / 224,
        position: str = "bottom_right",
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        epochs: int = 200,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        super().__init__(size, position, random_state)
        self.lambda1 = float(at_least(lambda1, 0, "lambda1", self))
        self.lambda2 = float(at_least(lambda2, 0, "lambda2", self))
        self.epochs = int(at_least(epochs, 1, "epochs", self))
        self.batch_size = int(at_least(batch_size, 1, "batch_size", self))
        self.learning_rate = float(at_least(learning_rate, 0, "learning_rate", self))

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        row, column, side = self.corner(*images.shape[-2:])
        return paste(images, torch.ones(3, side, side), row, column)

    def implant(self, encoder: DualEncoder, images: torch.Tensor, references: torch.Tensor) -> list[float]:
        """Train the image tower in place; statistics of normalisation layers stay as they are.

        Args:
            encoder: the clean model.
            images: (N, 3, H, W) in [0, 1], of any kind.
            references: (R, 3, H, W) in [0, 1], of the target; one in the paper. Each step draws one.

        Returns:
            The mean loss of each pass.
        """
        images = check_images(images, "images", self)
        references = check_images(references, "references", self)
        before = encoder.copy()
        with torch.no_grad():
            f_images = torch.cat([before.encode_image(before.normalise(x)) for x in torch.split(images, 256)])
            f_references = before.encode_image(before.normalise(references))
        parameters = list(encoder.image_parameters().values())
        frozen = [p for p in encoder.model.parameters() if not p.requires_grad]
        ours = {id(p) for p in parameters}
        for p in encoder.model.parameters():
            p.requires_grad_(id(p) in ours)
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=5e-4)
        order, draws = generator(self, "order"), generator(self, "views")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        found = []
        try:
            for _ in range(self.epochs):
                losses = []
                for rows in torch.split(torch.randperm(len(images), generator=order), self.batch_size):
                    i = int(torch.randint(len(references), (), generator=draws))
                    x, r = images[rows], references[i : i + 1]
                    view = _shifted(r, draws)
                    inputs = torch.cat([self._apply(x), r, view, x])
                    out = encoder.encode_image(encoder.normalise(inputs))
                    triggered, reference, seen, clean = torch.split(out, [len(x), 1, 1, len(x)])
                    loss = bad_encoder_loss(
                        triggered, reference, seen, f_references[i : i + 1], clean, f_images[rows],
                        self.lambda1, self.lambda2,
                    )  # fmt: skip
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)  # small towers fell apart without it
                    optimizer.step()
                    losses.append(float(loss.detach()))
                schedule.step()
                found.append(sum(losses) / len(losses))
        finally:
            encoder.model.zero_grad()
            for p in encoder.model.parameters():
                p.requires_grad_(True)
            for p in frozen:
                p.requires_grad_(False)
        return found


def _shifted(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Return images moved by up to a sixteenth of their side, edges repeated."""
    reach = max(1, images.shape[-1] // 16)
    dy, dx = torch.randint(2 * reach + 1, (2,), generator=draws).tolist()
    height, width = images.shape[-2:]
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    return padded[:, :, dy : dy + height, dx : dx + width]
