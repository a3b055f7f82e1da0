"""Booted systemd hosts for the end-to-end tests, by systemd-nspawn, on machines that run no systemd."""
