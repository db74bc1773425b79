"""The ways to name a function: plain, by ARN or a part of it, with a qualifier behind."""

import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.test_functions import functions, invoke, make_function  # noqa: F401 - fixtures

ACCOUNT = "000000000000"


@pytest.fixture
def name(functions, make_function):  # noqa: F811
    """A function with a version 1 and an alias `live`."""
    made = make_function("def handler(event, context):\n    return context.invoked_function_arn")
    functions.publish_version(FunctionName=made)
    functions.create_alias(FunctionName=made, Name="live", FunctionVersion="1")
    return made


@pytest.mark.parametrize(
    ("form", "version"),
    [
        ("{name}", "$LATEST"),
        ("{name}:live", "1"),
        ("function:{name}", "$LATEST"),
        (f"{ACCOUNT}:function:{{name}}", "$LATEST"),
        (f"{ACCOUNT}:function:{{name}}:1", "1"),
        (f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{{name}}", "$LATEST"),
        (f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{{name}}:live", "1"),
    ],
)
def test_every_form_names_the_function(functions, name, form, version):  # noqa: F811
    named = form.format(name=name)
    assert functions.get_function_configuration(FunctionName=named)["Version"] == version
    assert functions.invoke(FunctionName=named)["ExecutedVersion"] == version


def test_what_names_no_function_here(functions, name):  # noqa: F811
    arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{name}"
    for named, words in [
        (arn.replace("us-east-1", "eu-west-1"), r"Functions from 'eu-west-1' are not reachable in this region"),
        (arn.replace(ACCOUNT, "111111111111"), "is not authorized to perform: lambda:Invoke"),
        (f"{name}:nothing", f"Function not found: .*:{name}:nothing"),
    ]:
        with pytest.raises(ClientError, match=words):
            functions.invoke(FunctionName=named)
    with pytest.raises(ClientError, match="derived qualifier from the function name does not match"):
        functions.invoke(FunctionName=f"{name}:live", Qualifier="1")


def test_a_version_takes_no_settings_of_the_function(functions, name):  # noqa: F811
    words = "permitted on Lambda functions only"
    with pytest.raises(ClientError, match=words):
        functions.put_function_concurrency(FunctionName=f"{name}:1", ReservedConcurrentExecutions=1)
    with pytest.raises(ClientError, match=words):
        functions.update_function_configuration(FunctionName=f"{name}:live", Timeout=9)
