"""One poisoned and one clean model for all tests of the defence; each test copies what it changes."""

from __future__ import annotations

import pytest
from _colours import trained

from tunesmith.audit.backdoor.encoders import DualEncoder


@pytest.fixture(scope="session")
def suspect() -> DualEncoder:
    return trained(poisoned=True)


@pytest.fixture(scope="session")
def harmless() -> DualEncoder:
    return trained(poisoned=False)
