"""`tf.distribute`: which strategy is open, and how replicas come together.

`strategy` answers questions about the strategy in which the caller runs. `replicas`
averages what each replica has learnt from its part of a batch (local SGD).
"""

from keras_sgd_plus._distribute import replicas, strategy

__all__ = ["replicas", "strategy"]
