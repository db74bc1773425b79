"""opslib: from a folder of photos to an autoscaled SageMaker endpoint behind a Lambda function, and back."""

__version__ = "0.1.0"
