"""Versions, aliases and revisions: what is published when, what may be deleted, and changes of what one saw only."""

import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import pack_function
from tests.rehearsal.test_functions import functions, invoke, make_function, updated  # noqa: F401 - fixtures

NUMBER = "def handler(event, context):\n    return {}\n"


def change(functions, name: str, number: int, **more) -> dict:  # noqa: F811
    """Give a function code that answers the number, and wait until it is there."""
    reply = functions.update_function_code(FunctionName=name, ZipFile=pack_function(NUMBER.format(number)), **more)
    updated(functions, name)
    return reply


def test_a_version_is_published_for_each_change_and_its_number_used_once(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0))
    first = functions.publish_version(FunctionName=name, Description="as made")
    assert (first["Version"], first["Description"], first["State"]) == ("1", "as made", "Active")
    assert functions.publish_version(FunctionName=name)["Version"] == "1"
    change(functions, name, 0)  # the same code again is nothing new
    assert functions.publish_version(FunctionName=name)["Version"] == "1"
    for number in (1, 2):
        change(functions, name, number)
        assert functions.publish_version(FunctionName=name)["Version"] == str(number + 1)
    functions.get_waiter("published_version_active").wait(FunctionName=name, Qualifier="3")
    functions.delete_function(FunctionName=name, Qualifier="3")
    change(functions, name, 3)
    assert functions.publish_version(FunctionName=name)["Version"] == "4"
    pages = functions.get_paginator("list_versions_by_function").paginate(
        FunctionName=name, PaginationConfig={"PageSize": 2}
    )
    listed = [[one["Version"] for one in page["Versions"]] for page in pages]
    assert listed == [["$LATEST", "1"], ["2", "4"]]
    assert invoke(functions, name, Qualifier="2")["Payload"] == 1


def test_code_may_be_published_as_it_is_sent(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0), Publish=True)
    reply = change(functions, name, 1, Publish=True)
    assert (reply["Version"], reply["FunctionArn"].rpartition(":")[2]) == ("2", "2")
    assert [invoke(functions, name, Qualifier=one)["Payload"] for one in ("1", "2")] == [0, 1]


def test_only_what_the_caller_saw_is_changed_and_published(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0))
    seen = functions.get_function_configuration(FunctionName=name)
    change(functions, name, 1, RevisionId=seen["RevisionId"])
    stale = {"FunctionName": name, "RevisionId": seen["RevisionId"]}
    for act in (
        lambda: functions.update_function_code(**stale, ZipFile=pack_function(NUMBER.format(2))),
        lambda: functions.update_function_configuration(**stale, Timeout=9),
        lambda: functions.publish_version(**stale),
    ):
        with pytest.raises(functions.exceptions.PreconditionFailedException, match="Revision Id provided does not"):
            act()
    with pytest.raises(ClientError, match="is different from current CodeSHA256 in"):
        functions.publish_version(FunctionName=name, CodeSha256=seen["CodeSha256"])
    assert invoke(functions, name)["Payload"] == 1
    functions.publish_version(FunctionName=name)
    made = functions.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    moved = functions.update_alias(FunctionName=name, Name="live", Description="d", RevisionId=made["RevisionId"])
    assert moved["RevisionId"] != made["RevisionId"]
    with pytest.raises(functions.exceptions.PreconditionFailedException):
        functions.update_alias(FunctionName=name, Name="live", Description="e", RevisionId=made["RevisionId"])


def test_a_policy_is_changed_by_those_who_saw_it(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0))
    entry = {"FunctionName": name, "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"}
    functions.add_permission(**entry, StatementId="first")
    seen = functions.get_policy(FunctionName=name)["RevisionId"]
    functions.add_permission(**entry, StatementId="second", RevisionId=seen)
    with pytest.raises(functions.exceptions.PreconditionFailedException):
        functions.add_permission(**entry, StatementId="third", RevisionId=seen)
    with pytest.raises(functions.exceptions.PreconditionFailedException):
        functions.remove_permission(FunctionName=name, StatementId="first", RevisionId=seen)
    now = functions.get_policy(FunctionName=name)["RevisionId"]
    functions.remove_permission(FunctionName=name, StatementId="first", RevisionId=now)


def test_what_an_alias_leads_to_is_not_deleted(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0))
    functions.publish_version(FunctionName=name)
    change(functions, name, 1)
    functions.publish_version(FunctionName=name)
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    functions.create_alias(FunctionName=name, Name="live", FunctionVersion="1", RoutingConfig=weights)
    for qualifier, words in [
        ("1", r"the following aliases reference it: \[live\]"),
        ("2", r"the following aliases reference it: \[live\]"),
        ("live", "Deletion of aliases is not currently supported"),
        ("$LATEST", "cannot be deleted without deleting the function"),
    ]:
        with pytest.raises(ClientError, match=words):
            functions.delete_function(FunctionName=name, Qualifier=qualifier)
    functions.update_alias(FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": {}})
    functions.delete_function(FunctionName=f"{name}:2")
    assert invoke(functions, name, Qualifier="live")["Payload"] == 0
    assert invoke(functions, name)["Payload"] == 1


def test_aliases_come_in_pages_and_by_version(functions, make_function):  # noqa: F811
    name = make_function(NUMBER.format(0))
    functions.publish_version(FunctionName=name)
    for alias, version in (("a", "1"), ("b", "$LATEST"), ("c", "1")):
        functions.create_alias(FunctionName=name, Name=alias, FunctionVersion=version)
    pages = functions.get_paginator("list_aliases").paginate(FunctionName=name, PaginationConfig={"PageSize": 2})
    assert [[one["Name"] for one in page["Aliases"]] for page in pages] == [["a", "b"], ["c"]]
    ours = functions.list_aliases(FunctionName=name, FunctionVersion="1")["Aliases"]
    assert [one["Name"] for one in ours] == ["a", "c"]
    assert functions.get_alias(FunctionName=name, Name="b")["FunctionVersion"] == "$LATEST"
    with pytest.raises(ClientError, match="Invalid marker"):
        functions.list_provisioned_concurrency_configs(FunctionName=name, Marker="none")
