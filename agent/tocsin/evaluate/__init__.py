"""Which rules an event matches: the host's side of detection content.

`engine` is the way in. `semantics` defines what a value and a comparison are;
`reference` and `fast` are two matchers that must agree on every input.
"""
