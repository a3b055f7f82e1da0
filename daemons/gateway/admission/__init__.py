"""When a request may go: the bounded queue in front of the engines."""
