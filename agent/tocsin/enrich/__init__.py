"""What user space adds to events: users, groups, containers, digests, packages; bounded, and no event waits for it."""
