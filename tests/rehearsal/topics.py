"""A topic of SNS, and what it was told."""

import json

import boto3
import pytest

from tests.rehearsal.serving import unique, until


@pytest.fixture
def topic(rehearsal):
    """Return a topic and a function that waits for the next message that it was told."""
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    arn = sns.create_topic(Name=unique("topic"))["TopicArn"]
    url = sqs.create_queue(QueueName=unique("queue"))["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue)

    def next_message() -> dict:
        [message] = until(lambda: sqs.receive_message(QueueUrl=url).get("Messages"))
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return json.loads(message["Body"])

    yield arn, next_message
    sns.delete_topic(TopicArn=arn)
    sqs.delete_queue(QueueUrl=url)
