"""What does one part of the loop cost, and what does it win?

Each study times SGDPlus against itself, with one part switched off or on.
"""
