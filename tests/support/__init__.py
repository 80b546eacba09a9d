"""What tests share, and `benchmarks` with them: a zoo of models, and how to compare.

`zoo` has one small model of every kind. `compare` says how far two trainings are apart,
and which bound the difference must keep.
"""
