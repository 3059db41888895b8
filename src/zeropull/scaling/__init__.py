"""Application Auto Scaling's own loop: readings become metrics, alarms, decisions, capacity."""
