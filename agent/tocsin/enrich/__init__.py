"""What user space adds to events: users; bounded, never blocking."""
