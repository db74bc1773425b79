"""CloudWatch: metrics and alarms on the rehearsal's clock."""
