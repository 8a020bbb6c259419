"""LT-SFT: a sparse delta learned in two phases by any trainer."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "LotteryTicket",
    "LotteryTicketMixin",
    "SourceBatches",
    "SourceMixin",
    "can_continue",
    "phase_length",
]

if TYPE_CHECKING:
    from tunesmith.trainers.lottery.mixin import LotteryTicketMixin, can_continue
    from tunesmith.trainers.lottery.settings import LotteryTicket, phase_length
    from tunesmith.trainers.lottery.sources import SourceBatches, SourceMixin
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "LotteryTicket": "settings",
            "LotteryTicketMixin": "mixin",
            "SourceBatches": "sources",
            "SourceMixin": "sources",
            "can_continue": "mixin",
            "phase_length": "settings",
        },
    )
