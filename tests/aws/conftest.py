"""Fixtures of the AWS side: a run of its own for each test, swept at the end."""

from collections.abc import Iterator

import pytest

from opslib.aws.ledger import Run, start_run
from opslib.aws.sweeping import sweep


@pytest.fixture
def run(rehearsal, tmp_path) -> Iterator[Run]:
    """A run in the rehearsal; whatever the test left is swept, and it must be possible to sweep it."""
    run = start_run("test", home=tmp_path / "runs")
    yield run
    assert sweep(run).leftovers == ()
