"""The activation model (ResNet-34), saliency models, reading images, precomputing and the feature file."""
