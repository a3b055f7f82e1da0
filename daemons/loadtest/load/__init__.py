"""What is sent and when: the plan, arrival times, traces, prompts."""
