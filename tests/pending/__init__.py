"""Embedding tables: rows wait for the updates that they have missed."""
