from hsal_cli.errors import HsalError as HsalError
from hsal_cli.evaluation import metrics as metrics
from hsal_cli.features.dataset import FeatureRow as FeatureRow
from hsal_cli.features.dataset import Features as Features
from hsal_cli.features.saliency.models import register_saliency as register_saliency
from hsal_cli.models.model import Model as Model
from hsal_cli.models.model import load as load
from hsal_cli.models.seen import Look as Look
from hsal_cli.models.seen import LookStep as LookStep
from hsal_cli.policy.episode import Episode as Episode
from hsal_cli.policy.hsal import HSAL as HSAL
from hsal_cli.policy.maps import GaussianAttention as GaussianAttention
from hsal_cli.scenes.datasets import MultisetDigits as MultisetDigits
from hsal_cli.scenes.datasets import Scene as Scene
from hsal_cli.scenes.datasets import Scenes as Scenes
from hsal_cli.training import rewards as rewards
from hsal_cli.training.own_rewards import register_reward as register_reward

__version__: str
