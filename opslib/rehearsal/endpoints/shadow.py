"""Shadow variants: they get copies of the requests, and their answers are thrown away.

A shadow gets the share of the requests that its weight is of the production variant's. Source:
docs.aws.amazon.com/sagemaker/latest/dg/model-shadow-deployment.html
"""

import logging
import random
import threading
from collections.abc import Mapping
from typing import Any

from opslib.rehearsal.calls import Call, ServiceError
from opslib.rehearsal.endpoints.asking import ask
from opslib.rehearsal.endpoints.hosting import Hosting, Variant

logger = logging.getLogger(__name__)

_MOST_UNDER_WAY = 64
"""Copies that wait for shadows at a time; further ones are dropped, so that a slow shadow holds nobody's memory."""

_random = random.Random()  # noqa: S311 - traffic, not secrets
_room = threading.BoundedSemaphore(_MOST_UNDER_WAY)


def check_shadows(params: Mapping[str, Any]) -> None:
    """Refuse shadow variants that CreateEndpointConfig would: one at most, beside exactly one production variant.

    Raises:
        ServiceError: ValidationException.
    """
    shadows, variants = params.get("ShadowProductionVariants", []), params["ProductionVariants"]
    if not shadows:
        return
    if len(shadows) > 1 or len(variants) > 1:
        raise _invalid("ShadowProductionVariants can have one variant, with exactly one production variant beside it.")
    if any("ServerlessConfig" in one for one in (*shadows, *variants)):
        raise _invalid("Shadow production variants are not supported with serverless inference.")
    if params.get("AsyncInferenceConfig"):
        raise _invalid("Shadow production variants are not supported with asynchronous inference.")
    if shadows[0]["VariantName"] == variants[0]["VariantName"]:
        raise _invalid(f"Variant names must be unique: {variants[0]['VariantName']}.")


def mirror(call: Call, hosting: Hosting) -> None:
    """Ask the endpoint's shadow, too; returns at once, whatever becomes of the copy."""
    for shadow in hosting.shadows.values():
        full = sum(variant.weight for variant in hosting.variants.values())
        share = shadow.weight / full if full else 0.0
        if _random.random() < share and _room.acquire(blocking=False):
            threading.Thread(target=_send, args=(call, shadow), name="shadow", daemon=True).start()


def _send(call: Call, shadow: Variant) -> None:
    try:
        ask(call, shadow)
    except ServiceError as error:
        logger.info("the shadow variant %s did not answer: %s", shadow.name, error.message)
    finally:
        _room.release()


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
