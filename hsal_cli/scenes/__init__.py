"""Section 5's data: glyph sources, composing scenes, and the scene file."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.scenes.datasets import MultisetDigits as MultisetDigits
    from hsal_cli.scenes.datasets import Scene as Scene
    from hsal_cli.scenes.datasets import Scenes as Scenes
    from hsal_cli.scenes.make import make_dataset as make  # noqa: F401
    from hsal_cli.scenes.settings import SceneSettings as SceneSettings

__all__ = show(
    __name__,
    {
        "make": "hsal_cli.scenes.make:make_dataset",
        "SceneSettings": "hsal_cli.scenes.settings:SceneSettings",
        "Scenes": "hsal_cli.scenes.datasets:Scenes",
        "Scene": "hsal_cli.scenes.datasets:Scene",
        "MultisetDigits": "hsal_cli.scenes.datasets:MultisetDigits",
    },
)
