"""What a model does with one text: its prediction, attention, saliency and the importance of its heads."""
