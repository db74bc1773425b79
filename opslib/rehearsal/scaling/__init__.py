"""Application Auto Scaling: capacities that follow metrics, schedules and bounds."""
