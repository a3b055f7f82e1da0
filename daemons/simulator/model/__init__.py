"""The engine model: a step loop over a scheduler and a KV block pool. Knows no HTTP and no clock."""
