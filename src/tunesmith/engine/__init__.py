"""Runners for per-example work and the models they run: chunked maps that continue where they were killed,
likelihoods of answers, finding and loading of models, and language models as callables on batches of chats."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.engine.chats import ChatModel, CutShort, Failure, ask, open_llm
    from tunesmith.engine.endpoint import ChatEndpoint
    from tunesmith.engine.image_text import image_text_nll
    from tunesmith.engine.lm import completion_nll
    from tunesmith.engine.local import map_rows
    from tunesmith.engine.local_llm import LocalLLM
    from tunesmith.engine.replies import CachedLLM

__all__ = [
    "CachedLLM",
    "ChatEndpoint",
    "ChatModel",
    "CutShort",
    "Failure",
    "LocalLLM",
    "ask",
    "completion_nll",
    "image_text_nll",
    "map_rows",
    "open_llm",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CachedLLM": "replies",
        "ChatEndpoint": "endpoint",
        "ChatModel": "chats",
        "CutShort": "chats",
        "Failure": "chats",
        "LocalLLM": "local_llm",
        "ask": "chats",
        "completion_nll": "lm",
        "image_text_nll": "image_text",
        "map_rows": "local",
        "open_llm": "chats",
    },
)
