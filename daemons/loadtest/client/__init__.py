"""The sending side: HTTP/1.1 and SSE on asyncio protocols, in a process that does nothing else."""
