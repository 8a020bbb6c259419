"""``tunesmith look DATA``: one page about a pile of data before anything is done with it."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.look.looking import Look, look
    from tunesmith.look.secrets import find_secrets

__all__ = ["Look", "find_secrets", "look"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {"Look": "looking", "find_secrets": "secrets", "look": "looking"},
)
