"""HSAL: saliency-based sequential image attention with multiset prediction (Welleck, Mao, Cho, Zhang, NIPS 2017)."""

__version__ = "0.1.0"
