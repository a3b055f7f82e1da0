"""``llmctl top``: GPUs, the engines on them, and the keys that load them."""

from daemons.llmctl.top.verb import add_parser, run

__all__ = ["add_parser", "run"]
