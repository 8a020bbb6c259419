"""Silence while a block runs, and everything as before afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest

from tunesmith.engine.silence import LOGGERS, quiet


def _state():
    from transformers.utils import logging as transformers_logging

    levels = [logging.getLogger(name).level for name in LOGGERS]
    return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), levels


def test_quiet_puts_everything_back_after_an_error():
    before = _state()
    with pytest.raises(ZeroDivisionError), quiet():  # noqa: PT012
        assert _state() != before
        assert not any(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in LOGGERS)
        raise ZeroDivisionError
    assert _state() == before


def test_python_warnings_are_silenced_only_where_asked():
    with pytest.warns(UserWarning, match="heard"), quiet():
        warnings.warn("heard", stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet(python_warnings=True):
            warnings.warn("not heard", stacklevel=1)
