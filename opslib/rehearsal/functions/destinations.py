"""Where asynchronous events go in the end: queues and topics, to which the function's role must be allowed to send.

Sources: docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html and invocation-async-add-dlq.html.
"""

import logging
from typing import Any

from moto.core.exceptions import ServiceException
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends

from opslib.rehearsal.calls import ACCOUNT_ID, ServiceError
from opslib.rehearsal.gateway.actions import Need
from opslib.rehearsal.identity import assume_role, require_permission

logger = logging.getLogger(__name__)

_ACTIONS = {"sqs": ("sqs:SendMessage", "SendMessage on SQS"), "sns": ("sns:Publish", "Publish on SNS")}


def require_destination(role_arn: str, arn: str) -> None:
    """Refuse a destination that is neither queue nor topic, or to which the function's role may not send.

    Raises:
        ServiceError: InvalidParameterValueException, in Lambda's words.
    """
    service = _service(arn)
    if service not in _ACTIONS:
        reason = f"Destinations of {service or 'no service'} cannot be rehearsed; take an SQS queue or an SNS topic."
        raise ServiceError("InvalidParameterValueException", reason)
    if not _may_send(role_arn, arn):
        reason = f"The provided execution role does not have permissions to call {_ACTIONS[service][1]}"
        raise ServiceError("InvalidParameterValueException", reason)


def deliver(role_arn: str, arn: str, body: str, attributes: dict[str, tuple[str, str]]) -> bool:
    """Send a message as the function's role; False when it may not, or there is no such queue or topic.

    `attributes` holds the type and the value of each of the message's attributes.
    """
    if not _may_send(role_arn, arn):
        return False
    _, _, _, region, _, name = arn.split(":", 5)
    try:
        if _service(arn) == "sqs":
            sqs_backends[ACCOUNT_ID][region].send_message(name, body, message_attributes=_for_sqs(attributes))
        else:
            sns_backends[ACCOUNT_ID][region].publish(body, arn, None, message_attributes=_for_sns(attributes))
    except ServiceException:  # it is gone, or takes no message of this size
        return False
    except Exception:  # a subscriber's failure, which moto meets at once, is not the topic's
        logger.warning("a subscriber of %s could not be told", arn, exc_info=True)
    return True


def _service(arn: str) -> str:
    parts = arn.split(":", 5)
    return parts[2] if len(parts) == 6 else ""


def _may_send(role_arn: str, arn: str) -> bool:
    principal = assume_role(role_arn, "destination")
    try:
        require_permission(principal, Need(_ACTIONS[_service(arn)][0], (arn,)), {})
    except ServiceError:
        return False
    return True


def _for_sqs(attributes: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {name: {"DataType": kind, "StringValue": value} for name, (kind, value) in attributes.items()}


def _for_sns(attributes: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {name: {"Type": kind, "Value": value} for name, (kind, value) in attributes.items()}
