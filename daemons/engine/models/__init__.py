"""Models on disk: downloaded from a hub or a mirror, checked against their manifest."""
