"""The room of the update rule, and of the oracle that judges it."""
