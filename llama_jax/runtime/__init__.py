"""Runtime services: hosts, watchdog, preemption, console, malloc."""
