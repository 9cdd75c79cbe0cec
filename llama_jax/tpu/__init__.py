"""What a TPU would do, found out without one."""
