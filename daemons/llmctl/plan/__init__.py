"""``llmctl plan``: what a model needs of the GPUs, before it is loaded."""

from daemons.llmctl.plan.verb import add_parser

__all__ = ["add_parser"]
