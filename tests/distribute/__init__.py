"""The room of `tf.distribute`: replicas, workers, and strategies of one device."""
