"""The author's side of detection content: Sigma in YAML becomes a compiled release.

The only place that imports pySigma and YAML. `build` gives the bytes of a
release, `check` everything that is wrong with the sources; both end in the
evaluator that hosts run.
"""
