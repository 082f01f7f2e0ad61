"""How a process of the agent gives away what it does not need. See `profiles`."""
