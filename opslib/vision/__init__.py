"""Runs where the model runs: torch, torchvision, PIL and the standard library; never boto3."""
