"""Checks of a YAML file from another party: it may hold plain values of bounded size. Knows text; not options.

Reading such a file runs no code. It could still copy the reader's environment into messages and reports
(`${oc.env:TOKEN}`), hang (a named pipe), or fill the memory (aliases of aliases).
"""

import re
from pathlib import Path
from typing import Final

LARGEST: Final = 1 << 20  # bytes of a config; fedq writes a few thousand
_MOST_FILES: Final = 1000


def check_yaml(path: Path, *, references: bool = False) -> None:
    """ValueError if a file holds more than plain values; `references`: allow `${key}`, a reference to an option."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: is not an ordinary file; give the config.yaml of a run")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: is larger than {LARGEST:,} bytes, which no config of fedq is; restore the file")
    try:
        for token in yaml.scan(path.read_text(encoding="utf-8")):
            if isinstance(token, yaml.AliasToken):
                raise ValueError(f"{path}: holds an alias (*{token.value}); write the value out")
            if isinstance(token, yaml.ScalarToken) and _interpolates(token.value, references):
                raise ValueError(
                    f"{path}: holds the interpolation {token.value[:80]!r}, which reads what is not in the file; "
                    "write the value out"
                )
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())}); restore the file") from None


def check_folder(folder: Path) -> None:
    """ValueError if a file of an overlay, another party's `conf/`, holds more than values and references."""
    files = [path for suffix in ("yaml", "yml") for path in sorted(folder.rglob(f"*.{suffix}"))]
    if len(files) > _MOST_FILES:
        raise ValueError(
            f"{folder}: holds {len(files):,} files, more than {_MOST_FILES:,}; start fedq in another folder"
        )
    for path in files:
        check_yaml(path, references=True)


def _interpolates(text: str, references: bool) -> bool:
    """Whether the text has an interpolation; with `references`: one with a resolver, such as `${oc.env:HOME}`."""
    return re.search(r"\$\{.*:" if references else r"\$\{", text, re.DOTALL) is not None
