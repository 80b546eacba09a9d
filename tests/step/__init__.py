"""The room of one batch: checks, traces, compilation, order, writing in place."""
