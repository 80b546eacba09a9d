"""Which trainings are timed, and in whose code?

`workloads` has seeded data and networks that every peer can build. There is one module
per peer, with its `ARMS`: an arm is one way to train a workload.
"""
