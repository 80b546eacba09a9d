"""All that the loop tells Python: bad examples, records, sums of losses."""
