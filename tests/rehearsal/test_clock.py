"""The rehearsal's clock, alone and in the replies of a rehearsal."""

import subprocess
import sys
import time
from email.utils import parsedate_to_datetime

import pytest

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


_SHOW_DATE = "import boto3; print(boto3.client('sts').get_caller_identity()['ResponseMetadata']['HTTPHeaders']['date'])"


def test_every_reply_bears_the_rehearsals_date():
    # A process of its own: this one may have the session's rehearsal in it, whose clock is the wall's.
    rehearsed = ["opslib.rehearsal", "run", "--speed", "3600", "--", sys.executable, "-c", _SHOW_DATE]
    shown = subprocess.check_output([sys.executable, "-m", *rehearsed], text=True, timeout=120)
    assert parsedate_to_datetime(shown.strip()).timestamp() > time.time() + 60
