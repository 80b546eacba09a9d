"""The project: architecture, texts, examples, benchmarks, security."""
