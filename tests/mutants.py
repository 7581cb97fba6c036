"""Runs mutmut on the codec, the reply checks and the privacy package, and writes what the tests did not notice.

docs/mutants.md gets one table for each group. build/mutants-GROUP.md, which git ignores, gets the list of survivors.

    python -m tests.mutants             both groups
    python -m tests.mutants privacy     one of them: codec, privacy
    python -m tests.mutants privacy --fifth    of each function those whose number ends in 3 or 8, for an estimate

Goes on where an interrupted run stopped: results are kept in mutants/. Mutants that survived are tried again once a
test has changed; killed ones are only if their function changed, so start from scratch (`rm -rf mutants`) before you
trust a score after tests were taken away.
"""

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
from mutmut.mutation.diff_apply import generated_function_names, get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

from fedq.console import markdown_table, replace_table

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "mutants.md"
LISTS = ROOT / "build"  # not in git
STATS = Path("mutants/mutmut-stats.json")  # written as each run begins
LEAST_SCORE = 0.8
# Table in the document -> what mutants of it are called.
GROUPS = {"codec": ("fedq.codec.", "fedq.flower.wire.", "fedq.server."), "privacy": ("fedq.privacy.", "fedq.client.")}
UNNOTICED = ("survived", "no tests")
UNFINISHED = ("not checked", "check was interrupted by user")
CODED = ("MalformedUpdate", "MalformedReply")  # whose first argument is a reason that others act on, the second a text


@dataclass(frozen=True)
class Survivor:
    function: str
    lines: tuple[str, ...]  # of a diff
    is_text: bool  # only the message of an error differs


@dataclass(frozen=True)
class Score:
    """Mutants of one file; `total` counts those that were tried."""

    path: str
    total: int
    untried: int
    survivors: tuple[Survivor, ...]

    @property
    def texts(self) -> int:
        return sum(survivor.is_text for survivor in self.survivors)


def main() -> int:
    os.chdir(ROOT)
    fifth = "--fifth" in sys.argv
    asked = [word for word in sys.argv[1:] if word != "--fifth"] or list(GROUPS)
    if unknown := sorted(set(asked) - set(GROUPS)):
        print(f"{unknown[0]}: must be one of {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    forget_survivors()
    return max(run_group(group, "*__mutmut_*[38]" if fifth else "*") for group in asked)


def run_group(group: str, which: str) -> int:
    mutmut = Path(sys.executable).with_name("mutmut")
    names = [f"{prefix}{which}" for prefix in GROUPS[group]]
    done = subprocess.run([mutmut, "run", *names], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        return done.returncode
    rooms = tuple(prefix.replace(".", "/") for prefix in GROUPS[group])
    paths = sorted(path for path in walk_mutatable_files() if path.as_posix().startswith(rooms))
    scores = [score for path in paths if (score := score_of(path)).total]
    replace_table(DOCUMENT, f"mutants_{group}", summary(scores))
    LISTS.mkdir(exist_ok=True)
    survivors = LISTS / f"mutants-{group}.md"
    survivors.write_text(survivor_list(group, scores))
    total, survived, texts = (sum(counts) for counts in zip(*map(counts_of, scores), strict=True))
    untried = sum(score.untried for score in scores)
    print(
        f"{group}: {total} mutants, {total - survived} killed, {survived} survived, {texts} of them texts of messages"
    )
    print(
        f"score {share(total - survived, total)}: at least {LEAST_SCORE:.0%} is asked; "
        f"{survivors.relative_to(ROOT)} lists survivors"
    )
    if untried:
        print(f"{untried} mutants are not tried yet; run `make mutants` again, it goes on")
    return 0 if total - survived >= LEAST_SCORE * total and not untried else 1


def forget_survivors() -> None:
    """Mutants that no test noticed get another chance if a test is newer than the last run."""
    if not STATS.exists() or max(p.stat().st_mtime for p in Path("tests").rglob("*.py")) < STATS.stat().st_mtime:
        return
    for path in walk_mutatable_files():
        kept = SourceFileMutationData(path=path)
        kept.load()
        kept.exit_code_by_key = {
            name: None if status_by_exit_code[code] in UNNOTICED else code
            for name, code in kept.exit_code_by_key.items()
        }
        if kept.exit_code_by_key:
            kept.save()


def score_of(path: Path) -> Score:
    found = SourceFileMutationData(path=path)
    found.load()
    statuses = {name: status_by_exit_code[code] for name, code in found.exit_code_by_key.items()}
    untried = sum(status in UNFINISHED for status in statuses.values())
    survivors = [survivor_of(name, path) for name, status in statuses.items() if status in UNNOTICED]
    return Score(path.as_posix(), len(statuses) - untried, untried, tuple(survivors))


def survivor_of(name: str, path: Path) -> Survivor:
    function, owner = orig_function_and_class_names_from_key(name)
    diff = get_diff_for_mutant(name, path=path).splitlines()[2:]
    lines = tuple(f"{line[0]} {line[1:].strip()}" for line in diff if line[0] in "-+")
    spans = MutantLineSpans.load(path)
    assert spans is not None  # mutmut has just written it
    sources = spans.read_function_sources(list(generated_function_names(name)))
    original, mutant = (without_texts(source) for source in sources)
    return Survivor(f"{owner}.{function}" if owner else function, lines, original == mutant)


def without_texts(source: str) -> str:
    """A function but for its name and the messages of what it raises."""
    source = source.strip("\n")
    tree = ast.parse(f"if True:\n{source}" if source.startswith(" ") else source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            node.name = ""
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            coded = ast.unparse(node.exc.func).split(".")[-1] in CODED
            node.exc.args = node.exc.args[:1] if coded else []
    return ast.dump(tree)


def summary(scores: Sequence[Score]) -> str:
    """The table of docs/mutants.md."""
    header = ["file", "mutants", "killed", "survived", "of them texts", "score"]
    rows = [row_of(score.path, *counts_of(score)) for score in scores]
    rows.append(row_of("all", *(sum(counts) for counts in zip(*map(counts_of, scores), strict=True))))
    parts = [markdown_table(header, rows)]
    if untried := sum(score.untried for score in scores):
        parts += ["", f"Not tried yet, and not counted: {untried} mutants."]
    return "\n".join(parts)


def survivor_list(group: str, scores: Sequence[Score]) -> str:
    """Every survivor of a group, file by file."""
    parts = [f"# Surviving mutants: {group}"]
    for score in scores:
        if score.survivors:
            parts += ["", f"## {score.path}", ""]
            parts += listed(score.survivors)
    return "\n".join([*parts, ""])


def counts_of(score: Score) -> tuple[int, int, int]:
    return score.total, len(score.survivors), score.texts


def row_of(path: str, total: int, survived: int, texts: int) -> list[str]:
    return [path, str(total), str(total - survived), str(survived), str(texts), share(total - survived, total)]


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def listed(survivors: Sequence[Survivor]) -> list[str]:
    """Texts by their number, all else line by line."""
    texts = Counter(survivor.function for survivor in survivors if survivor.is_text)
    others = [survivor for survivor in survivors if not survivor.is_text]
    lines = [f"Texts of messages: {', '.join(f'{n} in `{name}`' for name, n in texts.items())}."] if texts else []
    if not others:
        return lines
    lines += ["", "```diff"] if lines else ["```diff"]
    last = None
    for survivor in others:
        if survivor.function != last:
            lines.append(f"# {survivor.function}")
        last = survivor.function
        lines += survivor.lines
    return [*lines, "```"]


if __name__ == "__main__":
    sys.exit(main())
