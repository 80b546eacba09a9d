"""How is an arm timed? In turns with its peers, or once in a process of its own.

`measuring` runs the arms of a workload pass by pass, `worker` holds a peer's arms in
its process, and `once` measures first calls and peaks of memory.
"""
