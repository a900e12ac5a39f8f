"""The files that the checks look at: those that git tracks, and new ones that it does not ignore."""

import os
import pathlib
import subprocess

CXX_SUFFIXES = (".h", ".cc", ".cu", ".cuh", ".inc")


def repository_root() -> pathlib.Path:
    return pathlib.Path(__file__).resolve().parents[2]


def _listed_by_git(root):
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        return None
    return [name for name in result.stdout.decode().split("\0") if name]


def _walked(root):
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", "build", "__pycache__")]
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root)


def files(root):
    """Relative paths with forward slashes, sorted. Without git (an exported tree): all files."""
    names = _listed_by_git(root)
    if names is None:
        names = _walked(root)
    return sorted(name for name in names if os.path.isfile(os.path.join(root, name)))


def cxx_files(root):
    return [name for name in files(root) if name.endswith(CXX_SUFFIXES)]
