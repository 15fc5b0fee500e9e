"""Section 4 of the paper: reward, objectives, the one training loop, fine-tuning and policy training."""
