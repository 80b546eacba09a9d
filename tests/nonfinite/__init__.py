"""The room of examples that are not finite: skipped, raised, or passed through."""
