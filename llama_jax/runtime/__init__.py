"""What surrounds a program: hosts, watchdog, preemption, console, malloc."""
