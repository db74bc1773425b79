"""EC2: RunInstances with user data really runs it; what is recorded and shown of instances is moto's.

Sources: docs.aws.amazon.com/AWSEC2/latest/UserGuide (user-data.html, ec2-instance-lifecycle.html).
"""

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from moto.backends import get_backend
from moto.iam.models import iam_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError, Witness
from opslib.rehearsal.gateway.actions import Need
from opslib.rehearsal.gateway.permissions import statements_of, trusts
from opslib.rehearsal.identity import require_permission, role_credentials
from opslib.rehearsal.instances.box import Box
from opslib.rehearsal.site import Site

PUBLIC_IMAGES = "/aws/service/deeplearning/ami/"
"""AWS's public parameters of Deep Learning AMIs; here each of them is one of moto's images."""

_OUTPUT = re.compile(rb"<output>.*?</output>", re.DOTALL)
_INSTANCE_ID = re.compile(rb"<instanceId>(i-[0-9a-f]+)</instanceId>")


class InstancesExtension:
    """The part of EC2 that the rehearsal performs: the machines' insides."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._boxes: dict[str, Box] = {}
        self._lock = threading.Lock()
        self.operations: Mapping[str, Operation] = {"ssm.GetParameter": self.get_parameter}
        self.witnesses: Mapping[str, Witness] = {
            "ec2.RunInstances": self.run_instances,
            "ec2.TerminateInstances": self.end_instances,
            "ec2.StopInstances": self.end_instances,
            "ec2.GetConsoleOutput": self.get_console_output,
        }

    def stop(self) -> None:
        """End every instance."""
        with self._lock:
            boxes = list(self._boxes.values())
            self._boxes.clear()
        for box in boxes:
            box.end()

    def get_parameter(self, call: Call) -> dict[str, Any]:
        """Answer GetParameter; AWS's public image parameters name an image of moto's."""
        name = call.params["Name"]
        if name.startswith(PUBLIC_IMAGES):
            image = get_backend("ec2")[ACCOUNT_ID][call.region].describe_images()[0].id
            arn = f"arn:aws:ssm:{call.region}::parameter{name}"
            about = {"Name": name, "Type": "String", "Value": image, "Version": 1, "ARN": arn}
            return {"Parameter": about | {"DataType": "aws:ec2:image"}}
        found = get_backend("ssm")[ACCOUNT_ID][call.region].get_parameter(name)
        if found is None:
            raise ServiceError("ParameterNotFound", f"Parameter {name} not found.")
        return {"Parameter": found.response_object(call.params.get("WithDecryption", False), call.region)}

    def run_instances(self, call: Call) -> Callable[[bytes], bytes]:
        """Check the role and the user data; when moto has made the instances, run them."""
        user_data, role = _user_data(call.params.get("UserData", "")), _role(call.params)
        if role is not None:
            context = {"iam:passedtoservice": ["ec2.amazonaws.com"]}
            require_permission(call.principal, Need("iam:PassRole", (role.arn,), context), {})

        def start(body: bytes) -> bytes:
            for identifier in map(bytes.decode, _INSTANCE_ID.findall(body)):
                record = get_backend("ec2")[ACCOUNT_ID][call.region].get_instance(identifier)
                box = Box(record, self._site.directory / "instances" / identifier, user_data)
                with self._lock:
                    self._boxes[identifier] = box
                if user_data.startswith("#!"):
                    box.start(self._variables(call.region, role, identifier))
                else:
                    box.show("running")
            return body

        return start

    def end_instances(self, _call: Call) -> Callable[[bytes], bytes]:
        """When moto has ended the instances, kill what runs in them."""

        def end(body: bytes) -> bytes:
            with self._lock:
                found = _INSTANCE_ID.findall(body)
                boxes = [box for one in found if (box := self._boxes.get(one.decode()))]
            for box in boxes:
                box.end()
            return body

        return end

    def get_console_output(self, call: Call) -> Callable[[bytes], bytes]:
        """Show what the user data wrote, instead of moto's sample."""
        box = self._boxes.get(call.params.get("InstanceId", ""))
        text = base64.b64encode("\n".join(box.output).encode()) if box else b""
        return lambda body: _OUTPUT.sub(b"<output>" + text + b"</output>", body)

    def _variables(self, region: str, role: Any, identifier: str) -> dict[str, str]:
        """Return what stands for the metadata service: the role's credentials, if EC2 may assume it."""
        variables = {"AWS_ENDPOINT_URL": self._site.endpoint_url, "AWS_EC2_METADATA_DISABLED": "true"}
        document = role and role.assume_role_policy_document
        statements = statements_of(json.loads(document) if isinstance(document, str) else document) if role else []
        if trusts(statements, "sts:AssumeRole", ("Service", "ec2.amazonaws.com"), {}):
            variables |= role_credentials(role.arn, identifier)
        return variables | {"AWS_REGION": region}


def _user_data(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ServiceError("InvalidParameterValue", "Invalid BASE64 encoding of user data.") from error


def _role(params: Mapping[str, Any]) -> Any:
    """Return the role of the instance profile that is asked for; moto refuses a profile that does not exist."""
    name = params.get("IamInstanceProfile.Name") or params.get("IamInstanceProfile.Arn", "").rpartition("/")[2]
    profiles = iam_backends[ACCOUNT_ID]["aws"].instance_profiles.values()
    roles = [role for profile in profiles if profile.name == name for role in profile.roles]
    return roles[0] if roles else None
