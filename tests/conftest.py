from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock name that no other test uses, nor another run of the suite."""
    return f"test-{request.node.originalname[:40]}-{uuid.uuid4().hex[:8]}"
