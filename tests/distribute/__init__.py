"""`tf.distribute`: several replicas, several workers, and one device."""
