"""What pyproject.toml cannot say: a README whose links work on PyPI, too, and an sdist that can be built again.

- The README's links are relative, so that they hold in a clone, in a fork and at each tag.  PyPI knows no files beside
  it: there they lead to this version's tag.
- setuptools puts the time and the modes of the builder's files into an sdist.  Ours has one time, that of
  SOURCE_DATE_EPOCH, and the modes that git knows.  A wheel made of it has them, too.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

HOME = "github.com/pidabs/pidabs"
RAW = "raw.githubusercontent.com/pidabs/pidabs"


def description() -> str:
    """The README with absolute links."""
    found = re.search(r'^version = "(.*)"$', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    tag = f"v{found[1]}"
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)", rf"\1https://{RAW}/{tag}/", text)
    return re.sub(r"(\]\()(?!\w+:|#)", rf"\1https://{HOME}/blob/{tag}/", text)


class SameSdist(sdist):
    def make_archive(
        self,
        base_name: str,
        format: str,
        root_dir: object = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        assert (format, root_dir) == ("gztar", None)
        assert base_dir is not None
        when = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())

        def same(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        name = f"{base_name}.tar.gz"
        with (
            open(name, "wb") as file,
            gzip.GzipFile("", "wb", 9, file, when) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(base_dir, filter=same)  # sorted by name
        return name


os.umask(0o022)  # what the build writes gets into the wheel with its mode
setup(long_description=description(), long_description_content_type="text/markdown", cmdclass={"sdist": SameSdist})
