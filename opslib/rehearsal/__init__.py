"""A local AWS that really trains, serves, throttles and denies: no account, no Docker, no root, no internet.

    from opslib import rehearsal

    with rehearsal.start():
        ...                                 # boto3, the SageMaker SDK and the AWS CLI talk to it

    rehearsal.interrupt_training("job")     # on managed spot: its instances are taken away

or, around any program, `python -m opslib.rehearsal run -- COMMAND`.
"""

import os

from opslib.rehearsal import interruptions
from opslib.rehearsal.server import Rehearsal, start

__all__ = ["Rehearsal", "interrupt_training", "start"]


def interrupt_training(name: str, *, away_seconds: float = interruptions.DEFAULT_AWAY_SECONDS) -> None:
    """Take the spot instances of a training job away for some seconds, in the rehearsal that this process speaks to.

    Raises:
        RehearsalError: no rehearsal is there, or the job has no spot instances at the moment.
    """
    interruptions.interrupt_training(name, os.environ, away_seconds)
