"""LT-SFT: a sparse delta learned in two phases by any trainer."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["LotteryTicket", "LotteryTicketMixin", "phase_length"]

if TYPE_CHECKING:
    from tunesmith.trainers.lottery.mixin import LotteryTicketMixin
    from tunesmith.trainers.lottery.settings import LotteryTicket, phase_length
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {"LotteryTicket": "settings", "LotteryTicketMixin": "mixin", "phase_length": "settings"},
    )
