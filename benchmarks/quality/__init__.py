"""What is learnt in the end, and how long does it take?

Real data, small networks, and the same search for a learning rate for every optimizer.
"""
