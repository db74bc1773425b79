"""Function URLs: who is let in, what the function gets, and what becomes of its answer."""

import base64
import http.client
import json
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import allow, pack_function, session_of
from tests.rehearsal.test_function_concurrency import sums
from tests.rehearsal.test_functions import functions, make_function  # noqa: F401 - fixtures

ECHO = """
def handler(event, context):
    if event["rawPath"] == "/fail":
        raise ValueError("no")
    if event["rawPath"] == "/shaped":
        return {"statusCode": 201, "headers": {"X-Mine": "yes", "Content-Length": "9"}, "cookies": ["a=1", "b=2"],
                "body": "/wAB", "isBase64Encoded": True}
    if event["rawPath"] == "/allowing":
        return {"statusCode": 200, "headers": {"access-control-allow-origin": "*"}, "body": ""}
    if event["rawPath"] == "/split":
        return {"statusCode": 200, "headers": {"X-Mine": "yes\\r\\nX-Theirs: no"}, "body": ""}
    return event
"""


def fetch(url: str, path: str = "", method: str = "GET", body: bytes = b"", **headers: str):
    """Ask with a plain client; return the reply with its body read."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request(method, f"{parts.path}{path}", body, {name.replace("_", "-"): headers[name] for name in headers})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply, content


def signed(session: boto3.Session, url: str, method: str = "GET", body: bytes = b"") -> dict[str, str]:
    """Return the headers that sign a request of a function URL."""
    request = AWSRequest(method, url, data=body)
    SigV4Auth(session.get_credentials(), "lambda", "us-east-1").add_auth(request)
    return dict(request.headers)


def open_to_all(functions, name: str) -> None:  # noqa: F811
    functions.add_permission(
        FunctionName=name, StatementId="url", Action="lambda:InvokeFunctionUrl", Principal="*",
        FunctionUrlAuthType="NONE",
    )  # fmt: skip
    functions.add_permission(
        FunctionName=name, StatementId="function", Action="lambda:InvokeFunction", Principal="*",
        InvokedViaFunctionUrl=True,
    )  # fmt: skip


def test_an_open_url_needs_a_policy_and_gives_the_function_the_request(functions, make_function):  # noqa: F811
    name = make_function(ECHO)
    url = functions.create_function_url_config(FunctionName=name, AuthType="NONE")["FunctionUrl"]
    assert url.startswith("http://127.0.0.1:")
    assert fetch(url)[0].status == 403
    open_to_all(functions, name)
    reply, content = fetch(
        url, "a%20b%2Fc?x=1&x=2&y=", "POST", b'{"n": 1}', Content_Type="application/json", Cookie="k=v; l=w"
    )
    event = json.loads(content)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/a%20b%2Fc", "x=1&x=2&y=")
    assert event["queryStringParameters"] == {"x": "1,2", "y": ""}
    assert event["cookies"] == ["k=v", "l=w"]
    assert (event["body"], event["isBase64Encoded"]) == ('{"n": 1}', False)
    assert event["requestContext"]["accountId"] == "anonymous"
    assert event["requestContext"]["http"]["method"] == "POST"
    photo = json.loads(fetch(url, "", "POST", b"\xff\xd8\xff", Content_Type="image/jpeg")[1])
    assert (base64.b64decode(photo["body"]), photo["isBase64Encoded"]) == (b"\xff\xd8\xff", True)


def test_what_the_function_returns_becomes_the_reply(functions, make_function):  # noqa: F811
    name = make_function(ECHO)
    url = functions.create_function_url_config(FunctionName=name, AuthType="NONE")["FunctionUrl"]
    open_to_all(functions, name)
    reply, content = fetch(url, "shaped")
    assert (reply.status, reply.headers["X-Mine"], content) == (201, "yes", b"\xff\x00\x01")
    assert reply.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    for path in ("fail", "split"):
        reply, content = fetch(url, path)
        assert (reply.status, content, reply.headers["X-Theirs"]) == (502, b"Internal Server Error", None)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    reply, _ = fetch(url)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "0")
    counted = [sums(name, metric, "Sum") for metric in ("UrlRequestCount", "Url5xxCount", "Url4xxCount")]
    assert counted == [4, 2, 1]
    functions.delete_function_url_config(FunctionName=name)
    assert fetch(url)[0].status == 403
    with pytest.raises(functions.exceptions.ResourceNotFoundException):
        functions.get_function_url_config(FunctionName=name)


def test_a_signed_url_lets_in_whom_policies_let_in(functions, make_function):  # noqa: F811
    name = make_function(ECHO)
    version = functions.publish_version(FunctionName=name)["Version"]
    functions.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
    url = functions.create_function_url_config(FunctionName=name, Qualifier="live", AuthType="AWS_IAM")["FunctionUrl"]
    assert fetch(url)[0].status == 403
    event = json.loads(fetch(url, **signed(boto3.Session(), url))[1])
    assert event["requestContext"]["authorizer"]["iam"]["userArn"].endswith(":user/rehearsal")
    wrong = signed(boto3.Session(), url) | {"X-Amz-Date": "20200101T000000Z"}
    assert fetch(url, **wrong)[0].status == 403
    arn = functions.get_function_url_config(FunctionName=name, Qualifier="live")["FunctionArn"]
    assert arn.endswith(f":{name}:live")
    half, whole = (
        session_of(allow("lambda:InvokeFunctionUrl", resource=arn)),
        session_of(allow("lambda:InvokeFunctionUrl", "lambda:InvokeFunction", resource=arn)),
    )
    assert fetch(url, **signed(half, url))[0].status == 403
    assert fetch(url, **signed(whole, url))[0].status == 200


def test_a_function_may_be_called_like_a_part_of_its_arn(functions, role):  # noqa: F811
    functions.create_function(
        FunctionName="lambda", Runtime="python3.13", Role=role, Handler="app.handler",
        Code={"ZipFile": pack_function(ECHO)},
    )  # fmt: skip
    arn = functions.get_function(FunctionName="lambda")["Configuration"]["FunctionArn"]
    made = functions.create_function_url_config(FunctionName=arn, AuthType="NONE")
    assert made["FunctionArn"] == arn
    assert functions.get_function_url_config(FunctionName="lambda")["FunctionUrl"] == made["FunctionUrl"]
    functions.delete_function(FunctionName="lambda")


def test_browsers_of_allowed_origins(functions, make_function):  # noqa: F811
    name = make_function(ECHO)
    cors = {"AllowOrigins": ["https://a.example"], "AllowMethods": ["POST"], "MaxAge": 60}
    url = functions.create_function_url_config(FunctionName=name, AuthType="NONE", Cors=cors)["FunctionUrl"]
    ask = {"Access_Control_Request_Method": "POST"}
    reply, _ = fetch(url, "", "OPTIONS", Origin="https://a.example", **ask)
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "https://a.example")
    assert (reply.headers["Access-Control-Allow-Methods"], reply.headers["Access-Control-Max-Age"]) == ("POST", "60")
    open_to_all(functions, name)
    reply, _ = fetch(url, "allowing", Origin="https://a.example")  # the URL's settings win
    assert reply.headers.get_all("Access-Control-Allow-Origin") == ["https://a.example"]
    reply, _ = fetch(url, "", "OPTIONS", Origin="https://b.example", **ask)
    assert reply.headers["Access-Control-Allow-Origin"] is None
    with pytest.raises(ClientError, match="Response streaming cannot be rehearsed"):
        functions.update_function_url_config(FunctionName=name, InvokeMode="RESPONSE_STREAM")


def test_each_qualifier_has_a_policy_of_its_own(functions, make_function):  # noqa: F811
    name = make_function(ECHO)
    functions.publish_version(FunctionName=name)
    statement = {"StatementId": "one", "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"}
    functions.add_permission(FunctionName=name, **statement)
    functions.add_permission(FunctionName=f"{name}:1", **statement)
    with pytest.raises(functions.exceptions.ResourceConflictException, match="already exists"):
        functions.add_permission(FunctionName=name, Qualifier="1", **statement)
    for named in (name, f"000000000000:function:{name}:1"):
        [found] = json.loads(functions.get_policy(FunctionName=named)["Policy"])["Statement"]
        assert found["Resource"].endswith(named.rpartition("function:")[2])
        functions.remove_permission(FunctionName=named, StatementId="one")
        with pytest.raises(functions.exceptions.ResourceNotFoundException):
            functions.remove_permission(FunctionName=named, StatementId="one")
        with pytest.raises(functions.exceptions.ResourceNotFoundException):
            functions.get_policy(FunctionName=named)
