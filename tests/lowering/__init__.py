"""The room of XLA: other forms of layers, the layout of kernels, flags, refusals."""
