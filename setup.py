"""What pyproject.toml cannot say: data/pretrained of the checkout goes into the wheel as hsal_cli/pretrained."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PRETRAINED = Path("data", "pretrained")
# Policies to compare with, and networks that look first: in a checkout alone, for a wheel is to stay under 60 MB.
BESIDE = ("*.multiset", "*.paper", "mnist-search.*", "mnist-set.*", "look")


class BuildWithPretrained(build_py):
    """Copies the trained policies beside the modules. An editable install reads them where they are, in the checkout."""

    def run(self):
        super().run()
        if self.editable_mode or not (PRETRAINED / "manifest.json").is_file():
            return
        target = Path(self.build_lib, "hsal_cli", "pretrained")
        shutil.rmtree(target, ignore_errors=True)  # a wheel built here before may have held other policies
        shutil.copytree(PRETRAINED, target, ignore=shutil.ignore_patterns(".*", *BESIDE))
        for path in target.rglob("manifest.json"):
            manifest = json.loads(path.read_text())
            if "policies" in manifest:
                if not (path.parent / "look").is_dir():
                    manifest.pop("look", None)
                manifest["policies"] = {name: entry for name, entry in manifest["policies"].items() if (path.parent / name).is_dir()}
                path.write_text(json.dumps(manifest, indent=2))


setup(cmdclass={"build_py": BuildWithPretrained})
