"""Scaling decisions: pure functions over readings and time. No I/O, no clock, no logging."""
