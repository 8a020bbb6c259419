"""What each stage of the pipeline let through, and the counts that must add up."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.core.errors import DataError

__all__ = ["Funnel", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of the stage.
        n_in: rows that came in.
        n_out: rows that went out.
        removed: reason -> rows; empty for a stage that makes rows.
        made: number of rows made of one -> rows of which so many were made; empty for a filter.

    Raises:
        DataError: the counts do not add up.
    """

    name: str
    n_in: int
    n_out: int
    removed: dict[str, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.made:
            whole = sum(self.made.values()) == self.n_in
            whole &= sum(count * rows for count, rows in self.made.items()) == self.n_out
        else:
            whole = self.n_in == self.n_out + sum(self.removed.values())
        if not whole:
            raise DataError(f"the counts of the stage '{self.name}' do not add up: {self.to_dict()}")

    @property
    def kept(self) -> float:
        """Share of the rows that went out; 1 for no rows."""
        return self.n_out / self.n_in if self.n_in else 1.0

    @property
    def expands(self) -> bool:
        """Whether the stage makes rows instead of removing some."""
        return bool(self.made)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __add__(self, other: Stage) -> Stage:
        """The same stage over two parts of the rows."""
        return Stage(
            self.name,
            self.n_in + other.n_in,
            self.n_out + other.n_out,
            dict(Counter(self.removed) + Counter(other.removed)),
            dict(Counter(self.made) + Counter(other.made)),
        )


class Funnel(list[Stage]):
    """Stages in their order; each takes in what the one before let through."""

    def check(self) -> None:
        """Check that the stages fit together.

        Raises:
            DataError: a stage took in another number of rows than the one before it let through.
        """
        for one, two in itertools.pairwise(self):
            if one.n_out != two.n_in:
                raise DataError(
                    f"the stage '{two.name}' took in {two.n_in:,} rows, but '{one.name}' let {one.n_out:,} through."
                )

    def __add__(self, other: Any) -> Funnel:  # type: ignore[override]
        """The same stages over two parts of the rows."""
        return Funnel([a + b for a, b in zip(self, other, strict=True)])

    def table(self) -> list[dict[str, Any]]:
        """Return one row a stage: name, rows in and out, share kept, the most frequent reason."""
        return [
            {
                "stage": s.name,
                "rows_in": s.n_in,
                "rows_out": s.n_out,
                "kept": None if s.expands else s.kept,
                "first_reason": max(s.removed, key=s.removed.__getitem__, default=None),
            }
            for s in self
        ]

    def __str__(self) -> str:
        lines = []
        for s in self:
            share = f"× {s.n_out / max(1, s.n_in):.2f}" if s.expands else f"{s.kept:.1%} kept"
            lines.append(f"{s.name:12} {s.n_in:>12,} → {s.n_out:>12,}  {share}")
            lines += [f"    {count:,} × {reason}" for reason, count in s.removed.items()]
        return "\n".join(lines)
