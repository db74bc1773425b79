"""What an hour of a machine costs: list prices, to be shown before anything is started. An estimate, never a bill."""

HOURLY_USD: dict[str, float] = {
    "t3.medium": 0.0416,
    "c5.xlarge": 0.17,
    "c5.2xlarge": 0.34,
    "m5.large": 0.096,
    "m5.xlarge": 0.192,
    "m5.2xlarge": 0.384,
    "g4dn.xlarge": 0.526,
    "g5.xlarge": 1.006,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.g4dn.xlarge": 0.736,
    "ml.g5.xlarge": 1.408,
}
"""On demand, Linux, us-east-1, US dollars an hour: aws.amazon.com/ec2/pricing/on-demand and sagemaker/ai/pricing."""

AS_OF = "2025-11"
"""Month of the list; AWS changes prices rarely, and other regions cost up to half as much again."""


def price_of(instance_type: str, minutes: float, *, instance_count: int = 1, spot: bool = False) -> str:
    """Return a line such as `m5.xlarge for at most 60 minutes: $0.19 (estimate, ...)`; an unknown type says so.

    Disks and transfer are not in it (30 GiB for an hour cost a third of a cent).
    """
    machines = instance_type if instance_count == 1 else f"{instance_count} x {instance_type}"
    what = f"{machines} for at most {minutes:.0f} minutes"
    if instance_type not in HOURLY_USD:
        return f"{what}: price unknown; see aws.amazon.com/ec2/pricing and aws.amazon.com/sagemaker/ai/pricing"
    dollars = HOURLY_USD[instance_type] * instance_count * minutes / 60
    saving = "; spot usually costs less than half of it" if spot else ""
    return f"{what}: ${dollars:.2f} (estimate: list price on demand in us-east-1, {AS_OF}{saving})"
