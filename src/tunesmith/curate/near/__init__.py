"""Finding rows that nearly repeat an earlier one: by shared word sequences, or by direction of an embedding."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.curate.near._words import shingles, words
    from tunesmith.curate.near.cosine import greedy_cosine
    from tunesmith.curate.near.deduplicate import NearDeduplicate
    from tunesmith.curate.near.minhash import greedy_minhash

__all__ = ["NearDeduplicate", "greedy_cosine", "greedy_minhash", "shingles", "words"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "NearDeduplicate": "deduplicate",
        "greedy_cosine": "cosine",
        "greedy_minhash": "minhash",
        "shingles": "_words",
        "words": "_words",
    },
)
