"""The operator's command: each verb calls a room below it."""
