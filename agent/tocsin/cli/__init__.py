"""The command `tocsin`: one module per verb."""
