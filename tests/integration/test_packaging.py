"""The distributions, each installed in an environment of its own and removed from it again."""

from __future__ import annotations

import os
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import hello_listen
from manual import PAGES
from processes import DEPLOY, SCRIPTS, run

ROOT = Path(__file__).parents[2]
PLUGIN = "twisted/plugins/hello_listen_plugin.py"


def succeed(*arguments: object, cwd: Path) -> str:
    """Run a program, and return what it printed."""
    ended = run(*arguments, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_every_way_to_install(tmp_path: Path) -> None:
    """Wheel, sdist and editable install bring the plugin; uninstalling leaves Twisted whole."""
    venv.create(tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    pip = SCRIPTS / "pip", "--python", programs / "python"
    succeed(*pip, "install", "-q", "editables", "hatchling", "twisted", cwd=tmp_path)
    succeed(programs / "hatchling", "build", "-d", tmp_path / "dist", cwd=ROOT)
    [wheel], [sdist] = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")

    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = (".css", ".js", ".md", ".py", ".sql", ".svg", ".typed", ".xml")
    package = ROOT / "src" / "hello_listen"
    source = (path for path in package.rglob("*.*") if path.suffix in kinds)
    shared = f"hello_listen-{hello_listen.__version__}.data/data/share"
    deployed = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert files == {
        PLUGIN,
        *(path.relative_to(ROOT / "src").as_posix() for path in source),
        *(f"{shared}/hello-listen/{name}" for name in deployed),
        *(f"{shared}/man/man1/{path.name}" for path in PAGES.iterdir()),
    }
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {PLUGIN, "LICENSE", "README.md", "pyproject.toml", "tests/conftest.py"} <= names
    assert {f"src/deploy/{name}" for name in deployed} <= names
    assert not [name for name in names if "dropin.cache" in name]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The wheel is what the tests themselves run over.
    for what in ([sdist], ["-e", ROOT]):
        succeed(*pip, "install", "-q", "--no-deps", "--no-build-isolation", *what, cwd=elsewhere)
        assert "hello-listen" in succeed(programs / "twistd", "--help", cwd=elsewhere)
        installed = tmp_path / "venv" / "share"
        assert all((installed / "hello-listen" / name).is_file() for name in deployed)
        assert all((installed / "man" / "man1" / path.name).is_file() for path in PAGES.iterdir())
        assert "--endpoint=" in succeed(programs / "twist", "hello-listen", "--help", cwd=elsewhere)
        succeed(*pip, "uninstall", "-q", "-y", "hello-listen", cwd=elsewhere)
        left = succeed(programs / "twistd", "--help", cwd=elsewhere)
        assert "hello-listen" not in left
        assert "portforward" in left
    assert os.listdir(elsewhere) == []
