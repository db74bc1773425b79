"""A local AWS that really trains, serves, throttles and denies: no account, no Docker, no root, no internet.

    from opslib import rehearsal

    with rehearsal.start():
        ...                                 # boto3, the SageMaker SDK and the AWS CLI talk to it

or, around any program, `python -m opslib.rehearsal run -- COMMAND`.
"""

from opslib.rehearsal.server import Rehearsal, start

__all__ = ["Rehearsal", "start"]
