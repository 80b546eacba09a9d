"""The room of private names of Keras and TensorFlow, and what happens without one."""
