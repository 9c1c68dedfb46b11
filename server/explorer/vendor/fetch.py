"""Fetches the libraries of the explorer, and axe for its tests, from npm: `make vendor`.

`packages.json` has the version, hash and licence of each. Browsers cannot resolve the bare names that the packages
import each other by ("preact"), and an import map would be an inline script: the names become relative paths.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]


def fetch(package: dict[str, Any], downloads: Path, targets: dict[str, str]) -> None:
    """Writes the files of one package, with its licence beside them.

    Args:
        targets: bare name -> file in this folder.
    """
    name = f"{package['name']}@{package['version']}"
    packed = subprocess.run(
        ["npm", "pack", name, "--silent"], cwd=downloads, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    digest = "sha512-" + base64.b64encode(hashlib.sha512((downloads / packed).read_bytes()).digest()).decode()
    if digest != package["integrity"]:
        sys.exit(f"{name} is not the package that was reviewed: got {digest}, expected {package['integrity']}")
    with tarfile.open(downloads / packed) as archive:
        for source, target in {**package["files"], "LICENSE": package["licence_file"]}.items():
            member = archive.extractfile(f"package/{source}")
            if member is None:
                sys.exit(f"{name} has no file {source}")
            text = re.sub(r"\n?//# sourceMappingURL=.*", "", member.read().decode()).rstrip() + "\n"
            for bare, file in targets.items():
                text = text.replace(f'from"{bare}"', f'from"./{file}"')
            path = (ROOT if package.get("tests_only") else FOLDER) / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def main() -> None:
    packages = json.loads((FOLDER / "packages.json").read_text(encoding="utf-8"))
    targets = {bare: file for package in packages for bare, file in package.get("imported_as", {}).items()}
    with tempfile.TemporaryDirectory() as downloads:
        for package in packages:
            fetch(package, Path(downloads), targets)


if __name__ == "__main__":
    main()
