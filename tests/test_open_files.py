"""The limit of open files is raised as far as it goes, and never lowered."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from opslib.open_files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
allow_open_files(600)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "left"), [(256, 1000, 600), (256, 500, 500), (800, 1000, 800)])
def test_the_limit_is_raised_and_never_lowered(soft, hard, left) -> None:
    command = [sys.executable, "-c", PROGRAM.format(soft=soft, hard=hard)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == left
