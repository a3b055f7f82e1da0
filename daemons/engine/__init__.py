"""Supervises one `vllm serve`: command line, start-up, warm-up, watchdog, restart, clean end."""
