"""Values against botocore's service models, in the words that AWS uses when it refuses them.

AWS answers e.g. `1 validation error detected: Value 'a_b' at 'trainingJobName' failed to satisfy constraint: Member
must satisfy regular expression pattern: ...`. The models are those that boto3 itself ships, so what passes here has the
names, types, lengths, ranges, patterns and enumerations that AWS's API documents.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any

from botocore.model import Shape

from opslib.rehearsal.calls import ServiceError

_CODES = {"sagemaker-runtime": "ValidationError", "logs": "InvalidParameterException"}
_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list, tuple),
    "string": (str,),
    "character": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "blob": (bytes, bytearray),
    "timestamp": (datetime,),
}


def validate_request(service: str, shape: Shape | None, params: dict[str, Any]) -> None:
    """Refuse parameters that the service's model does not allow.

    Raises:
        ServiceError: SerializationException for a value of another type or a member that does not exist; otherwise
            ValidationException (the service's own name for it), with every constraint that failed.
    """
    if shape is None:
        return
    misfit = next(_misfits(shape, params, ""), None)
    if misfit:
        raise ServiceError("SerializationException", misfit)
    failures = list(_failures(shape, params, ""))
    if failures:
        count = f"{len(failures)} validation error{'s' if len(failures) > 1 else ''} detected"
        code = _CODES.get(service, "ValidationException")
        raise ServiceError(code, f"{count}: " + "; ".join(failures))


def reply_faults(shape: Shape | None, reply: dict[str, Any]) -> list[str]:
    """Return what is wrong with a reply: members that do not exist, wrong types, required members that are absent."""
    if shape is None:
        return [] if not reply else [f"the operation has no output, and {sorted(reply)} was answered"]
    return [*_misfits(shape, reply, ""), *(fault for fault in _failures(shape, reply, "") if "null" in fault)]


def without_absent(shape: Shape | None, value: Any) -> Any:
    """Return a JSON reply without nulls and without the empty structures that stand for an absent one.

    AWS leaves absent structures out; the SageMaker SDK's models refuse `{}` where a member is required.
    """
    if shape is None or value is None:
        return value
    if shape.type_name == "structure" and isinstance(value, dict):
        members = shape.members
        kept = {name: without_absent(members.get(name), member) for name, member in value.items()}
        return {name: member for name, member in kept.items() if not _is_absent(members.get(name), member)}
    if shape.type_name == "list" and isinstance(value, list):
        return [without_absent(shape.member, item) for item in value]
    return value


def _is_absent(shape: Shape | None, value: Any) -> bool:
    return value is None or (value == {} and shape is not None and shape.type_name == "structure")


def _misfits(shape: Shape, value: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if getattr(shape, "is_document_type", False):
        return
    number_as_bool = isinstance(value, bool) and kind != "boolean"
    if not isinstance(value, _TYPES[kind]) or number_as_bool:
        if not (kind == "blob" and hasattr(value, "read")):
            yield f"{path or 'the request'} is of type {type(value).__name__}; the service expects {kind}"
        return
    if kind == "structure":
        for name, member in value.items():
            if name not in shape.members:
                known = ", ".join(sorted(shape.members))
                yield f'Unknown parameter in {path or "input"}: "{name}", must be one of: {known}'
            elif member is not None:
                yield from _misfits(shape.members[name], member, f"{path}.{name}".lstrip("."))
    elif kind == "list":
        for position, item in enumerate(value, start=1):
            yield from _misfits(shape.member, item, f"{path}.{position}.member")
    elif kind == "map":
        for key, item in value.items():
            yield from _misfits(shape.value, item, f"{path}.{key}")


def _failures(shape: Shape, value: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if not isinstance(value, _TYPES[kind]):  # a misfit, which is told apart
        return
    for rule in _broken_rules(shape, value):
        yield f"Value '{_shown(value)}' at '{path}' failed to satisfy constraint: Member must {rule}"
    if kind == "structure" and not getattr(shape, "is_document_type", False):
        yield from _member_failures(shape, value, path)
    elif kind == "list":
        for position, item in enumerate(value, start=1):
            yield from _failures(shape.member, item, f"{path}.{position}.member")
    elif kind == "map":
        for key, item in value.items():
            yield from _failures(shape.key, key, path)
            yield from _failures(shape.value, item, f"{path}.{key}.member")


def _member_failures(shape: Shape, value: dict[str, Any], path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if value.get(name) is None:
            where = prefix + _lower_first(name)
            yield f"Value null at '{where}' failed to satisfy constraint: Member must not be null"
    for name, member in value.items():
        if member is not None and name in shape.members:
            yield from _failures(shape.members[name], member, prefix + _lower_first(name))


def _broken_rules(shape: Shape, value: Any) -> Iterator[str]:
    metadata, kind = shape.metadata, shape.type_name
    if kind in {"string", "list", "map"}:
        if len(value) < metadata.get("min", 0):
            yield f"have length greater than or equal to {metadata['min']}"
        if len(value) > metadata.get("max", float("inf")):
            yield f"have length less than or equal to {metadata['max']}"
    if kind in {"integer", "long", "float", "double"}:
        if value < metadata.get("min", float("-inf")):
            yield f"have value greater than or equal to {metadata['min']}"
        if value > metadata.get("max", float("inf")):
            yield f"have value less than or equal to {metadata['max']}"
    if kind == "string":
        if "enum" in metadata and value not in metadata["enum"]:
            yield f"satisfy enum value set: [{', '.join(metadata['enum'])}]"
        pattern = _compiled(metadata["pattern"]) if "pattern" in metadata else None
        if pattern and not pattern.fullmatch(value):
            yield f"satisfy regular expression pattern: {metadata['pattern']}"


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Compile one of the models' patterns, which are Java's; None for what Python cannot express."""
    for java, python in ((r"\p{L}", r"\w"), (r"\p{N}", r"\d"), (r"\p{Z}", r"\s"), (r"\p{P}", r"!-/:-@\[-`{-~")):
        pattern = pattern.replace(java, python)
    try:
        return re.compile(pattern, re.DOTALL if pattern == ".*" else 0)
    except re.error:
        return None


def _lower_first(name: str) -> str:
    return name[:1].lower() + name[1:]


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
