"""HSAL: saliency-based sequential image attention with multiset prediction (Welleck, Mao, Cho, Zhang, NIPS 2017).

`import hsal_cli as hsal` gives the names below, each imported when it is first asked for; docs/python.md shows their use.
"""

from hsal_cli.faces import show

__version__ = "0.1.0"

# __init__.pyi tells type checkers the same names.
__all__ = show(
    __name__,
    {
        "load": "hsal_cli.models.model:load",
        "Model": "hsal_cli.models.model:Model",
        "Look": "hsal_cli.models.seen:Look",
        "LookStep": "hsal_cli.models.seen:LookStep",
        "Scenes": "hsal_cli.scenes.datasets:Scenes",
        "Scene": "hsal_cli.scenes.datasets:Scene",
        "MultisetDigits": "hsal_cli.scenes.datasets:MultisetDigits",
        "Features": "hsal_cli.features.dataset:Features",
        "FeatureRow": "hsal_cli.features.dataset:FeatureRow",
        "HSAL": "hsal_cli.policy.hsal:HSAL",
        "Episode": "hsal_cli.policy.episode:Episode",
        "GaussianAttention": "hsal_cli.policy.maps:GaussianAttention",
        "metrics": "hsal_cli.evaluation.metrics",
        "rewards": "hsal_cli.training.rewards",
        "register_saliency": "hsal_cli.features.saliency.models:register_saliency",
        "register_reward": "hsal_cli.training.own_rewards:register_reward",
        "HsalError": "hsal_cli.errors:HsalError",
    },
)
