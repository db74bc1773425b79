"""The rehearsal's clock, alone and in the replies of a rehearsal."""

import time
from email.utils import parsedate_to_datetime

import boto3
import pytest

from opslib import rehearsal
from opslib.errors import ConfigurationError
from opslib.rehearsal.clock import Clock


def test_it_shows_the_walls_time_and_then_runs_as_fast_as_asked():
    clock, wall = Clock(speed=100), time.time()
    assert abs(clock.time() - wall) < 5
    before = clock.time()
    while time.time() < wall + 0.2:
        time.sleep(0.01)
    assert clock.time() - before >= 15  # 0.2 s, a hundred times as fast, less what the first lines took
    assert clock.wall_seconds(60) == pytest.approx(0.6)


@pytest.mark.parametrize("speed", [0, -1, 0.5, float("nan"), float("inf"), 1e6])
def test_no_clock_stands_still_or_runs_backwards(speed):
    with pytest.raises(ConfigurationError, match="speed"):
        Clock(speed)


def test_every_reply_bears_the_rehearsals_date():
    with rehearsal.start(speed=3600) as running:
        reply = boto3.client("sts").get_caller_identity()
        date = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        assert abs(running.clock.now() - date).total_seconds() < 3600
        assert date.timestamp() > time.time() + 60
