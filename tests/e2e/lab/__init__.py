"""Booted systemd hosts for the end-to-end tests, by systemd-nspawn, on a machine without systemd of its own."""
