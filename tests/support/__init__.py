"""Tests share these: an oracle, twins, tables of cases, models, helpers."""
