"""The source `bcc`: the same programs, compiled on the host by BCC for the kernel that runs."""
