"""AWS's query and CBOR protocols, for services whose clients speak them beside JSON (CloudWatch).

Which one a client takes depends on its SDK and its age: boto3 has gone from query to JSON, others speak CBOR. moto and
botocore read and write both; here they are put together.
"""

from collections.abc import Mapping
from typing import Any

from botocore.model import OperationModel
from botocore.parsers import ResponseParserError, RpcV2CBORParser
from botocore.serialize import RpcV2CBORSerializer
from botocore.utils import parse_timestamp
from moto.core.parse import QueryParser
from moto.core.serialize import QuerySerializer, SerializationContext

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.gateway.protocols import Reply

CBOR = "smithy-rpc-v2-cbor"


def read_other_parameters(protocol: str, operation: OperationModel, body: bytes, form: Mapping[str, str]) -> Any:
    """Return the parameters of a request in the query or the CBOR protocol.

    Raises:
        ServiceError: SerializationException, when the body is none.
    """
    try:
        if protocol == CBOR:
            return _read_cbor(body)
        parser = QueryParser(operation, timestamp_parser=parse_timestamp)
        return parser.parse({"values": dict(form)})
    except (ResponseParserError, ValueError, TypeError, RecursionError) as error:
        raise ServiceError("SerializationException", f"Could not parse the request: {error}") from error


def write_other_reply(protocol: str, operation: OperationModel, reply: dict[str, Any], request_id: str) -> Reply:
    """Write a reply's members in the query or the CBOR protocol."""
    if protocol == CBOR:
        written = bytearray()
        if operation.output_shape is not None:
            RpcV2CBORSerializer()._serialize_data_item(written, reply, operation.output_shape)
        return Reply(200, {"Content-Type": "application/cbor", "smithy-protocol": "rpc-v2-cbor"}, bytes(written))
    serializer = QuerySerializer(operation, SerializationContext(request_id=request_id))
    written = serializer.serialize(reply)
    return Reply(written["status_code"], dict(written["headers"]), written["body"].encode())


def _read_cbor(body: bytes) -> Any:
    if not body:
        return {}
    parser = RpcV2CBORParser()
    return parser.parse_data_item(parser.get_peekable_stream_from_bytes(body))
