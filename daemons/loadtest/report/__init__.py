"""Showing results: live display, text, JSON and a self-contained HTML page."""
