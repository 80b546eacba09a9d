"""What XLA gets: other forms of layers, kernels' layout, flags, what it refuses."""
