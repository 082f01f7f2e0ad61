"""Serialised events: where they stand in a batch and what their fields are called."""
