"""What is compiled: the train and evaluation steps, their cost in FLOPs and memory, and their shapes."""
