"""Asking a judge of either kind, keeping what it said, and telling the row where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError, TunesmithError, shorten
from tunesmith.trainers.s3ft.generators import name_of
from tunesmith.trainers.s3ft.journal import Journal, key_of
from tunesmith.trainers.s3ft.judges import is_batched

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Bench"]

Item = tuple[Any, str, str, dict[str, Any]]


class Bench:
    """A judge and how it is asked.

    Args:
        judge: a callable, see `judges`.
    """

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    @cached_property
    def name(self) -> str:
        """What tells its verdicts from those of others; asked once, since it may hash a model."""
        return name_of(self._judge)

    def judge(
        self,
        dataset: Dataset,
        rows: Sequence[int],
        pairs: Sequence[tuple[Any, str]],
        candidates: Sequence[str],
        journal: Journal,
    ) -> list[bool]:
        """Return a verdict on the candidate of each of some rows; those known to the journal come from there.

        Raises:
            DataError: the judge raised or returned no bool; says the row and the message. Verdicts before are kept.
        """
        if not rows:
            return []
        columns = dataset.with_format(None)[list(rows)]
        items = [
            (pairs[i][0], candidates[j], pairs[i][1], {name: values[j] for name, values in columns.items()})
            for j, i in enumerate(rows)
        ]
        keys = [key_of(self.name, *item) for item in items]
        new = {key: j for j, key in reversed(list(enumerate(keys))) if key not in journal.verdicts}
        todo = sorted(new.values())
        if is_batched(self._judge):
            self._all_at_once([(rows[j], items[j], keys[j]) for j in todo], journal)
        else:
            for j in todo:
                verdict = self._ask(rows[j], items[j], journal)
                journal.verdict(keys[j], self._bool(verdict, rows[j], items[j], journal))
        journal.write()
        return [journal.verdicts[key] for key in keys]

    def _all_at_once(self, todo: list[tuple[int, Item, str]], journal: Journal) -> None:
        if not todo:
            return
        try:
            verdicts = list(
                self._judge(*(list(values) for values in zip(*(t[1] for t in todo), strict=True)))
            )
        except Exception as error:
            if isinstance(error, TunesmithError) and not isinstance(error, DataError):
                raise  # a wrong key, a missing model: no row's fault
            # Which row was it? One by one, until it raises again.
            for row, item, key in todo:
                found = self._ask(row, item, journal)
                journal.verdict(key, self._bool(found, row, item, journal))
            return
        if len(verdicts) != len(todo):
            raise DataError(
                f"the judge returned {len(verdicts)} verdicts on {len(todo)} candidates. {journal.told()}"
            )
        for verdict, (row, item, key) in zip(verdicts, todo, strict=True):
            journal.verdict(key, self._bool(verdict, row, item, journal))

    def _ask(self, row: int, item: Item, journal: Journal) -> Any:
        try:
            if not is_batched(self._judge):
                return self._judge(*item)
            found = list(self._judge(*([value] for value in item)))
            return found[0] if len(found) == 1 else found
        except Exception as error:
            if isinstance(error, TunesmithError) and not isinstance(error, DataError):
                raise
            what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise DataError(
                f"the judge raised {what.rstrip('.')}. The candidate reads: {shorten(item[1])!r}. {journal.told()}",
                row=row,
            ) from error

    @staticmethod
    def _bool(verdict: Any, row: int, item: Item, journal: Journal) -> bool:
        if not isinstance(verdict, (bool, np.bool_)):
            raise DataError(
                f"the judge must return True or False. Got {shorten(repr(verdict))} ({type(verdict).__name__}) "
                f"instead. The candidate reads: {shorten(item[1])!r}. {journal.told()}",
                row=row,
            )
        return bool(verdict)
