"""The load tester: sends a described load to an OpenAI-compatible server and reports what clients met.

`load` says what is sent and when, `client` sends it from a process of its own, `measure` turns records into
figures and verdicts, `report` shows them, `conduct` conducts a run.
"""
