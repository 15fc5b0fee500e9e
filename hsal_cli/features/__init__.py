"""The feature file, precomputing it, saliency models."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.features.dataset import FeatureRow as FeatureRow
    from hsal_cli.features.dataset import Features as Features
    from hsal_cli.features.precompute import precompute as precompute
    from hsal_cli.features.settings import PrecomputeSettings as PrecomputeSettings

__all__ = show(
    __name__,
    {
        "precompute": "hsal_cli.features.precompute:precompute",
        "PrecomputeSettings": "hsal_cli.features.settings:PrecomputeSettings",
        "Features": "hsal_cli.features.dataset:Features",
        "FeatureRow": "hsal_cli.features.dataset:FeatureRow",
    },
)
