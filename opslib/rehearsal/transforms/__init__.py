"""Batch transform: jobs that send every record of a prefix through model servers of their own."""
