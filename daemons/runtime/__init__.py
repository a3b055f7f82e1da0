"""The ground floor, shared by every daemon: settings, logging, life cycle, credentials, sockets, metrics."""
