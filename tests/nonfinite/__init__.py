"""Examples that are not finite: passed through, left out, or named in an error."""
