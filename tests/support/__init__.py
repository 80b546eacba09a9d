"""What tests share: an oracle, twins, tables of cases, models, and helpers."""
