"""What do all rooms share? Stored results, the machine, processes and findings.

`storage` reads and writes `results/*.json`, `machine` describes the machine of a
measurement, `processes` runs a function in a new process, and a study yields objects of
`finding`.
"""
