"""Data capture: requests and answers of an endpoint, written to S3 as JSON Lines.

The objects are <DestinationS3Uri>/<endpoint>/<variant>/<yyyy>/<mm>/<dd>/<hh>/<mm>-<ss>-<ms>-<uuid>.jsonl, written with
the permissions of the model's role; where it may not write, nothing is captured and nobody is told, as on AWS. AWS
delivers within minutes; here it is two seconds.
Source: docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture.html
"""

import base64
import json
import logging
import random
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.calls import Call
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri

logger = logging.getLogger(__name__)

DELIVERY_SECONDS = 2.0
"""From the first record of an object until the object is written."""

_FULL_RECORDS = 1000
"""An object with so many records is written at once."""


class DataCapture:
    """Captures what passes through one endpoint."""

    def __init__(self, config: Mapping[str, Any], endpoint_name: str, storage: RoleStorage) -> None:
        """Take an endpoint configuration's DataCaptureConfig and the S3 of the model's role."""
        modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
        both = "InputAndOutput" in modes
        self._input, self._output = both or "Input" in modes, both or "Output" in modes
        self._share = config["InitialSamplingPercentage"] / 100
        self._types = config.get("CaptureContentTypeHeader", {})
        self._bucket, prefix = split_uri(config["DestinationS3Uri"])
        self._prefix = "/".join(part for part in (prefix.strip("/"), endpoint_name) if part)
        self._storage = storage
        self._random = random.Random()  # noqa: S311 - a sample, not a secret
        self._records: dict[str, list[str]] = {}
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def capture(self, call: Call, variant_name: str, reply: ContainerReply) -> None:
        """Keep a request and its answer, if it falls into the sample; it is written to S3 later."""
        if self._random.random() >= self._share:
            return
        record = json.dumps(self._record(call, reply), ensure_ascii=False)
        with self._lock:
            records = self._records.setdefault(variant_name, [])
            records.append(record)
            if len(records) >= _FULL_RECORDS:
                self._schedule(0.0)
            elif self._timer is None:
                self._schedule(DELIVERY_SECONDS)

    def close(self) -> None:
        """Write what is still kept."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
        self._write()

    def _schedule(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._write)
        self._timer.daemon = True
        self._timer.start()

    def _write(self) -> None:
        with self._lock:
            records, self._records, self._timer = self._records, {}, None
        for variant_name, lines in records.items():
            moment = datetime.now(UTC)
            name = f"{moment:%M-%S}-{moment.microsecond // 1000:03d}-{uuid.uuid4()}.jsonl"
            key = f"{self._prefix}/{variant_name}/{moment:%Y/%m/%d/%H}/{name}"
            try:
                self._storage.write(self._bucket, key, ("\n".join(lines) + "\n").encode())
            except StorageRefused as error:
                logger.warning("captured data was not written: %s", error)

    def _record(self, call: Call, reply: ContainerReply) -> dict[str, Any]:
        moment, params, data = datetime.now(UTC), call.params, {}
        if self._input:
            sent_type = params.get("ContentType", "")
            data["endpointInput"] = self._side("INPUT", sent_type, bytes(params.get("Body", b"")))
        if self._output:
            data["endpointOutput"] = self._side("OUTPUT", reply.headers.get("content-type", ""), reply.body)
        event = {"eventId": str(uuid.uuid4()), "inferenceTime": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}
        if "CustomAttributes" in params:
            event["customAttributes"] = [params["CustomAttributes"]]
        if "InferenceId" in params:
            event["inferenceId"] = params["InferenceId"]
        return {"captureData": data, "eventMetadata": event, "eventVersion": "0"}

    def _side(self, mode: str, content_type: str, body: bytes) -> dict[str, str]:
        encoding, text = self._encoded(content_type, body)
        return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}

    def _encoded(self, content_type: str, body: bytes) -> tuple[str, str]:
        """Return CSV or JSON and the text where the configuration names the type, otherwise BASE64."""
        kind = content_type.partition(";")[0].strip().lower()
        for encoding, member in (("CSV", "CsvContentTypes"), ("JSON", "JsonContentTypes")):
            if kind in [known.lower() for known in self._types.get(member, [])]:
                try:
                    return encoding, body.decode()
                except UnicodeDecodeError:
                    break
        return "BASE64", base64.b64encode(body).decode()
