"""Does SGDPlus compute what Keras computes at `batch_size=1`, model by model?"""
