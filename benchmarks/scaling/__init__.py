"""How do time and memory grow?

With the network, the batch, the data and the vocabulary (`growth`), with embedding
tables under momentum (`embeddings`), and with worker processes (`replicas`).
"""
