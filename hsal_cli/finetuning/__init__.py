"""Section 5: the activation model, fine-tuned on single objects, crowds, own images."""
