"""Keras operations in forms that XLA:CPU compiles well, equal up to rounding.

They are used only while a loop is traced in this thread (`tracing`). `installation`
maps the functions of Keras's backend to their forms and puts them there; `layout`
carries kernels transposed and `one_kernel` decides how XLA runs the loop.
`KERAS_SGD_PLUS_LOWERING=0` in the environment switches all of them off; `python -m
benchmarks ablation` prints what each one wins.
"""
