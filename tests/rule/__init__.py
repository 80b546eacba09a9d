"""The update rule: the oracle that judges it, and the rule by itself."""
