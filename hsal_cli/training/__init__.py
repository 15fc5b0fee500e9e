"""Section 4: rewards, objectives, tasks, training; verdicts on a run."""
