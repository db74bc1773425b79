"""EC2 instances whose user data really runs."""
