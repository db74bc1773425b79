"""Processes that cannot outlive the rehearsal, and the containers without Docker that they run in."""
