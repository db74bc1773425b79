"""Take a job's spot instances away on purpose, which AWS does by itself and offers no call for.

The rehearsal's own door: POST /rehearsal/InterruptTraining on its address, signed like every request with the key of
the standard variables. It is never sent anywhere but to 127.0.0.1.
"""

import http.client
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from opslib.errors import RehearsalError

PATH = "/rehearsal/InterruptTraining"
DEFAULT_AWAY_SECONDS = 5.0
_HERE = "127.0.0.1"
_WAIT_SECONDS = 30


def interrupt_training(name: str, variables: Mapping[str, str], away_seconds: float = DEFAULT_AWAY_SECONDS) -> None:
    """Interrupt a running training job on managed spot instances; it makes another attempt by itself.

    Its program gets SIGTERM and 120 seconds; what it left in the checkpoint directory is there again when it starts.

    Args:
        name: the training job's.
        variables: the standard variables of the rehearsal, such as os.environ where they are set.
        away_seconds: how long no instances are to be had afterwards.

    Raises:
        RehearsalError: no rehearsal is there, or the job has no spot instances at the moment.
    """
    address = urlsplit(variables.get("AWS_ENDPOINT_URL", ""))
    if address.hostname != _HERE or not address.port:
        raise RehearsalError("no rehearsal is running here", hint='eval "$(python -m opslib.rehearsal start)"')
    body = json.dumps({"TrainingJobName": name, "AwaySeconds": away_seconds})
    request = AWSRequest("POST", f"http://{address.netloc}{PATH}", {"Content-Type": "application/json"}, body)
    key = Credentials(variables.get("AWS_ACCESS_KEY_ID", ""), variables.get("AWS_SECRET_ACCESS_KEY", ""))
    SigV4Auth(key, "rehearsal", variables.get("AWS_DEFAULT_REGION", "us-east-1")).add_auth(request)
    connection = http.client.HTTPConnection(_HERE, address.port, timeout=_WAIT_SECONDS)
    try:
        connection.request("POST", PATH, body, dict(request.headers.items()))
        response = connection.getresponse()
        answer = json.loads(response.read() or b"{}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RehearsalError(f"the rehearsal does not answer: {error}", hint="start it again") from error
    finally:
        connection.close()
    if response.status != 200:
        raise RehearsalError(
            f"{name} was not interrupted: {answer.get('message') or answer.get('__type')}",
            hint="only a job with EnableManagedSpotTraining can be, while it starts or trains",
        )
