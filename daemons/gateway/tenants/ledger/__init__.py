"""The ledger: one row for every request that its limits let in, in an SQLite file that nothing waits for."""
