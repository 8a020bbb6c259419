"""What is compared of a request: the embedding of its text, the text's length, and every number of its row."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.audit.drift.reading import Skipped, source_name
from tunesmith.core.errors import DataError, ParameterError, UnknownNameError
from tunesmith.core.events import EventLog

__all__ = ["EMBEDDING", "LENGTH", "TIME_FIELDS", "RequestFeatures", "fields_of", "request_text"]

EMBEDDING, LENGTH = "embedding", "text length"
TEXT_FIELDS = (
    "prompt",
    "text",
    "messages",
    "input",
    "question",
    "query",
    "instruction",
    "request",
    "content",
)
"""Fields whose text is taken if none is named: the first that a row has."""
TIME_FIELDS = ("t", "time", "timestamp", "@timestamp", "ts", "created", "created_at", "date", "datetime")
"""Fields that tell when; the first that a row has dates a window."""
_NO_MEASURE = (
    *TIME_FIELDS,
    "id",
    "request_id",
    "user_id",
    "session_id",
    "trace_id",
    "row",
    "index",
    "seed",
    "_row",
)
_PRESENT = 0.95  # share of rows that must have a number for it to be compared unasked
_CHUNK = 512

Place = tuple[str, dict[str, Any]]


class RequestFeatures:
    """Turn rows of requests into what `DriftDetector` takes.

    Args:
        text_field: field of the text; None takes the first of `TEXT_FIELDS` that a row has. A list of messages stands
            for what its user wrote.
        features: names to compare: fields (``usage.total_tokens`` inside others), ``"text length"`` in characters,
            ``"embedding"``. None takes all three kinds, of the numbers those that nearly every row of the reference
            has; times, ids and counters, which always move, are left out.
        encoder: sentence encoder, see `tunesmith.engine.models.load_encoder`; None compares numbers alone.
        batch_size: texts per forward pass.

    Attributes:
        names: what is compared, after `fit`.
        notes: what was left out, and why.
    """

    def __init__(
        self,
        text_field: str | None = None,
        features: Sequence[str] | None = None,
        encoder: str | None = "minilm",
        batch_size: int = 32,
    ) -> None:
        if isinstance(features, str):
            raise ParameterError("features", self, "a list of names", features)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ParameterError("batch_size", self, "an int >= 1", batch_size)
        if encoder is None and EMBEDDING in (features or ()):
            raise ParameterError("encoder", self, "the name of one where 'embedding' is a feature", encoder)
        self.text_field, self.features = text_field, features
        self.encoder, self.batch_size = encoder, batch_size
        self.names: list[str] = []
        self.notes: list[str] = []
        self._model: Any = None

    @property
    def numbers(self) -> list[str]:
        """Fields among the names."""
        return [name for name in self.names if name not in (EMBEDDING, LENGTH)]

    @property
    def reads_text(self) -> bool:
        """Whether a row needs a text."""
        return EMBEDDING in self.names or LENGTH in self.names

    def fit(self, rows: Sequence[Place], source: Any = None, skip: Sequence[str] = ()) -> RequestFeatures:
        """Choose what to compare by the rows of the reference.

        Args:
            rows: places and rows.
            source: named in errors.
            skip: fields that are none of the numbers unless asked for.

        Raises:
            UnknownNameError: ``features`` names what no row has.
            DataError: there is nothing to compare.
        """
        flat = [dict(fields_of(row)) for _, row in rows]
        found: dict[str, list[float]] = {}
        for row in flat:
            for name, value in row.items():
                if (x := _number(value)) is not None:
                    found.setdefault(name, []).append(x)
        has_text = self.text_field is not None or any(request_text(row) is not None for _, row in rows)
        known = [*found, *([LENGTH, EMBEDDING] if has_text else [])]
        if self.features is not None:
            for name in self.features:
                if name not in known:
                    raise UnknownNameError("feature of the reference", name, known)
            self.names = list(dict.fromkeys(self.features))
            return self
        self.names = [EMBEDDING, LENGTH] if has_text and self.encoder is not None else []
        if not has_text:
            self.notes.append(
                f"Texts are not compared: no row of the reference has a field {', '.join(TEXT_FIELDS)}; another is "
                "named with text_field."
            )
        for name, values in found.items():
            if name in skip or name.rsplit(".", 1)[-1].lower() in _NO_MEASURE:
                continue
            if len(values) < _PRESENT * len(rows):
                self.notes.append(
                    f"'{name}' is left out: only {len(values):,} of {len(rows):,} rows have a number there."
                )
            elif len(values) > 2 and all(b > a for a, b in itertools.pairwise(values)):
                self.notes.append(f"'{name}' is left out: it rises from row to row, as a time or an id.")
            else:
                self.names.append(name)
        if not self.names:
            raise DataError(
                "there is nothing to compare: no row has a text or a number. Name the text's field with text_field.",
                source=source_name(source),
            )
        return self

    def problem(self, row: Mapping[str, Any]) -> str:
        """Return why a row cannot be used, empty if it can."""
        if self.reads_text:
            text = request_text(row, self.text_field)
            if text is None:
                return f"no text in '{self.text_field}'" if self.text_field else "no text"
            if not isinstance(text, str):
                return f"the text is no string but of type {type(text).__name__}"
        if self.numbers:
            flat = dict(fields_of(row))
            for name in self.numbers:
                value = flat.get(name)
                if isinstance(value, (int, float)) and not _is_finite(value):
                    return f"'{name}' is not finite"
                if _number(value) is None:
                    return f"no number in '{name}'"
        return ""

    def usable(self, rows: Iterator[Place] | Sequence[Place], skipped: Skipped) -> Iterator[Place]:
        """Yield the rows that can be used; count the others."""
        for place, row in rows:
            reason = self.problem(row)
            if reason:
                skipped.add(place, reason)
            else:
                yield place, row

    def columns(
        self, rows: Sequence[Mapping[str, Any]], log: EventLog | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return name -> float64 (n,), or float32 (n, d) for the embedding, unit vectors.

        Raises:
            MissingModelError: the encoder cannot be found.
        """
        columns: dict[str, NDArray[Any]] = {}
        texts = [str(request_text(row, self.text_field)) for row in rows] if self.reads_text else []
        flat = [dict(fields_of(row)) for row in rows]
        for name in self.names:
            if name == EMBEDDING:
                columns[name] = self._embed(texts, log or EventLog())
            elif name == LENGTH:
                columns[name] = np.array([len(text) for text in texts], dtype=np.float64)
            else:
                columns[name] = np.array([_number(row[name]) for row in flat], dtype=np.float64)
        return columns

    def _embed(self, texts: list[str], log: EventLog) -> NDArray[np.float32]:
        from tunesmith.engine.models import load_encoder

        if self._model is None:
            self._model = load_encoder(str(self.encoder))
        progress = log.progress(f"embedding with {self.encoder}", len(texts))
        parts = []
        for begin in range(0, len(texts), _CHUNK):
            part = self._model.encode(
                texts[begin : begin + _CHUNK],
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            parts.append(np.asarray(part, dtype=np.float32))
            progress.advance(len(part))
        return np.concatenate(parts)


def request_text(row: Mapping[str, Any], field: str | None = None) -> Any:
    """Return the text of a request, or what stands in its place if that is none (None where nothing does).

    Args:
        row: of a log.
        field: as ``text_field`` of `RequestFeatures`; ``outer.inner`` for one inside another.
    """
    if field is None:
        field = next((name for name in TEXT_FIELDS if row.get(name) is not None), "")
    value: Any = row.get(field)
    if value is None and "." in field:
        value = row
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value):
        said = [m.get("content") for m in value if m.get("role") == "user"]
        if said and all(isinstance(content, str) for content in said):
            return "\n".join(said)
    return value


def fields_of(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a row; those inside another field as ``outer.inner``."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unknown_numbers(rows: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[str]:
    """Return fields of numbers that most rows have and the reference lacks."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update(name for name, value in fields_of(row) if _number(value) is not None)
    return [
        name
        for name, n in found.items()
        if n > len(rows) / 2 and name not in known and name.rsplit(".", 1)[-1].lower() not in _NO_MEASURE
    ]


def _number(value: Any) -> float | None:
    """Return a number or a flag as float, None for all else and for what is not finite."""
    if isinstance(value, (int, float)) and _is_finite(value):
        return float(value)
    return None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond floats
        return False
