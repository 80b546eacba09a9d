"""Measurements of keras_sgd_plus. README.md in this folder shows the results.

Each room answers one question; its `__init__.py` says which. A study is a module that
is named like its subcommand, in the room of its question. `measure(arguments)` of a
study yields findings, as soon as it has them, and writes `results/<name>.json`. Only
`report` turns findings and stored results into tables and figures. `__main__` connects
the two, so no study imports `report`.
"""
