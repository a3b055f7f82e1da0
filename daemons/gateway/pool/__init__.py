"""The engines: state, health, choice, connections."""
