"""The room of the project: architecture, texts, examples, benchmarks, security."""
