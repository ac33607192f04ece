"""One table of architectures: trained on the same text at equal parameters, and at equal FLOPs, then fine-tuned."""
