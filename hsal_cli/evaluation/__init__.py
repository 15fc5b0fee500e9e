"""Section 5 of the paper: multiset metrics, attention scores, and the evaluation of a policy."""
