"""One batch: checks, traces and compilations, the order, streams, writing in place."""
