"""Runs where the notebook runs: boto3 and the SageMaker SDK; never torch."""
