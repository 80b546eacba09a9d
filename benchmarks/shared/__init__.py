"""What do all rooms share? Stored results, the machine, processes and findings.

`storage` reads and writes `results/*.json`, `machine` describes what a measurement ran
on, `processes` runs a function in a process of its own, and `finding` is what a study
yields.
"""
