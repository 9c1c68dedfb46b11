"""Builds the release of a commit, reproducibly: the client's wheel, the server's wheel, and the bento.

    python deploy/release.py [--output dist] [--commit HEAD]

The sources are those of the commit, not of the working tree. All times in the files are SOURCE_DATE_EPOCH, by default
the time of the commit, so that the same commit and the same tools give the same bytes: compare the SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="FOLDER", help="default: dist")
    parser.add_argument("--commit", default="HEAD", help="default: HEAD")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    commit = git("rev-parse", "--verify", f"{args.commit}^{{commit}}")
    if git("status", "--porcelain"):
        print(f"changes that are not committed are left out: this is commit {commit[:12]}", file=sys.stderr)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or git("show", "--no-patch", "--format=%ct", commit))
    os.umask(0o022)  # a wheel records the permissions of its files
    with tempfile.TemporaryDirectory(prefix="v1t-release-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        files = [
            build_wheel(source / "clients" / "python", output, epoch),
            build_wheel(source, output, epoch),
            build_bento(source, Path(folder) / "bentoml", output, epoch),
        ]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    (output / SUMS).write_text("".join(f"{line}\n" for line in sums), encoding="utf-8")
    print(f"{output}, from commit {commit[:12]}:", *sums, sep="\n")


def build_wheel(project: Path, output: Path, epoch: int) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
        call(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, project, SOURCE_DATE_EPOCH=str(epoch))
        (wheel,) = Path(folder).glob("*.whl")
        return wheel.replace(output / wheel.name)


def build_bento(source: Path, home: Path, output: Path, epoch: int) -> Path:
    """A file for `bentoml import`."""
    (version,) = re.findall(
        r'^__version__ = "(.+)"$', (source / "clients/python/v1t_client/_version.py").read_text(), re.M
    )
    inherited = {name: "" for name in os.environ if name.startswith("V1T_")}
    environment = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(source), **inherited}
    call(sys.executable, "-m", "bentoml", "build", "-o", "tag", "--version", version, source, **environment)
    (description,) = home.glob(f"bentos/*/{version}/bento.yaml")
    text, n = re.subn(
        r"^creation_time: .*$",
        f"creation_time: '{datetime.fromtimestamp(epoch, UTC).isoformat(timespec='microseconds')}'",
        description.read_text(encoding="utf-8"),
        flags=re.M,
    )
    assert n == 1
    description.write_text(text, encoding="utf-8")
    bento = output / f"{description.parent.parent.name}-{version}.bento"
    with tarfile.open(bento, "w:xz", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(description.parent.rglob("*")):
            member = archive.gettarinfo(path, arcname=path.relative_to(description.parent).as_posix())
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if path.is_dir() or member.mode & 0o100 else 0o644
            if path.is_dir():
                archive.addfile(member)
            else:
                with path.open("rb") as content:
                    archive.addfile(member, content)
    return bento


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def call(*command: str | Path, **environment: str) -> None:
    """Runs a command quietly; shows what it printed if it fails."""
    run = {**os.environ, **environment}
    done = subprocess.run(command, env=run, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


if __name__ == "__main__":
    main()
