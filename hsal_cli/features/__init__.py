"""The feature file, precomputing it, saliency models."""
