"""Lambda functions in environments of their own, under AWS's runtime client."""
