"""The room of callbacks: `ExactResume`, `SeededArrays`, and callbacks of Keras."""
