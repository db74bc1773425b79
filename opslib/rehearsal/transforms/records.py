"""How batch transform cuts a file into requests, and puts the answers together again.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformInput.html and API_TransformOutput.html
"""

from collections.abc import Iterable, Iterator


class PayloadTooLarge(Exception):  # noqa: N818 - it becomes a FailureReason
    """A record, or a file that is not split, is larger than MaxPayloadInMB."""


def cut(content: bytes, *, by_line: bool, many_at_once: bool, max_bytes: int | None) -> Iterator[bytes]:
    """Yield the bodies of the requests that a file becomes, in order; every record lies in one of them as a whole.

    A body of many records ends without a line break. `max_bytes` None: no limit, the body is streamed on AWS.

    Raises:
        PayloadTooLarge: a record does not fit.
    """
    records = content.removesuffix(b"\n").split(b"\n") if by_line else [content]
    batch, size = [], -1
    for record in records:
        if max_bytes is not None and len(record) > max_bytes:
            raise PayloadTooLarge
        grown = size + 1 + len(record)
        if batch and (not many_at_once or (max_bytes is not None and grown > max_bytes)):
            yield b"\n".join(batch)
            batch, grown = [], len(record)
        batch.append(record)
        size = grown
    yield b"\n".join(batch)


def put_together(answers: Iterable[bytes], *, by_line: bool) -> bytes:
    """Return the output file of the answers: one after the other, each with a line break at its end if asked for."""
    if not by_line:
        return b"".join(answers)
    return b"".join(answer if answer.endswith(b"\n") else answer + b"\n" for answer in answers)
