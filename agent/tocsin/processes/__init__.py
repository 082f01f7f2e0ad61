"""The processes of the agent and what they say to each other: one module per process."""
