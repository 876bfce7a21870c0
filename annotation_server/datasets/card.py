"""The two files of an export that are for people and catalogues: README.md, the dataset card, and croissant.json.

Both are made of the manifest and the version's summary alone, so that the same version gives the same bytes.
croissant.json follows the Croissant 1.0 format (http://mlcommons.org/croissant/1.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from annotation_server.datasets.models import DatasetVersion
from trainer.contract.dimensions import Polarity
from trainer.contract.exports import Manifest

_LISTS = {
    Polarity.ACCEPTABLE: "the candidates that are acceptable",
    Polarity.FLAWED: "the candidates that are flawed",
}
_FIELDS = (
    ("id", "sc:Text", "The sample's id and the dimension."),
    ("sample_id", "sc:Text", "The sample's id in the project."),
    ("split", "sc:Text", "train, validation or test."),
    ("dimension", "sc:Text", "What was judged."),
    ("polarity", "sc:Text", "What the letters of the answer list."),
    ("answer", "sc:Text", "Candidate letters; empty for none."),
    ("answer_source", "sc:Text", "Where the answer comes from."),
    ("rationale", "sc:Text", "The reasoning that leads to the answer; may be empty."),
    ("approach", "sc:Text", "Where the rationale comes from; null without one."),
    ("annotators", "sc:Integer", "Votes on the task."),
    ("agreement", "sc:Float", "Share of votes equal to the answer; null without votes."),
    ("prompt_version", "sc:Text", "The prompt the rationale answers."),
)


def extra_files(version: DatasetVersion, manifest: Manifest) -> dict[str, bytes]:
    """README.md and croissant.json of an export."""
    croissant = json.dumps(_croissant(version, manifest), indent=1, ensure_ascii=False)
    return {"README.md": _card(version, manifest).encode(), "croissant.json": f"{croissant}\n".encode()}


def _card(version: DatasetVersion, manifest: Manifest) -> str:
    summary = version.summary
    records = sum(manifest.splits.values())
    frozen = f" on {version.frozen_at:%Y-%m-%d}" if version.frozen_at else ""
    return f"""# {version.project.name}: {version.name}

Version `{manifest.version_id}`, frozen{frozen} by Winnow: {records} records about {summary["originals"]} originals.

A record is one original image with its candidates (images generated from it, lettered from A), judged on one dimension.
Its answer lists {_LISTS[manifest.polarity]}; the list may be empty.
`docs/export-format.md` of Winnow describes every field.

{_table("split", manifest.splits)}
{_table("dimension", summary["dimensions"])}
{_table("where the answer comes from", summary["answer_sources"])}
{_table("where the rationale comes from", summary["approaches"])}
All records of one original are on one side. Originals with known answers (gold) are never in train.

Images are as they came in, without personal metadata; the orientation some carry has to be applied when they are read.
Rights in the images are those of their sources, and are not stated here.
`verify_version` proves that nothing here was changed: `manifest.json` lists every file with its sha256.
"""


def _table(head: str, counts: Mapping[str, int]) -> str:
    lines = [
        f"| {head} | records |",
        "| --- | --- |",
        *(f"| {name} | {count} |" for name, count in sorted(counts.items())),
    ]
    return "\n".join(lines) + "\n"


def _croissant(version: DatasetVersion, manifest: Manifest) -> dict[str, Any]:
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": f"{version.project.slug}-{version.name}",
        "description": f"Generated images judged by dimension; each answer lists {_LISTS[manifest.polarity]}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": "1.0.0",
        "identifier": manifest.version_id,
        **({"datePublished": f"{version.frozen_at:%Y-%m-%d}"} if version.frozen_at else {}),
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "record-files",
                "name": "record-files",
                "description": "Records in order of id, one JSON object per line.",
                "encodingFormat": "application/jsonlines",
                "includes": "records-*.jsonl",
            },
            {
                "@type": "cr:FileSet",
                "@id": "images",
                "name": "images",
                "description": "Originals and candidates, named by the sha256 of their bytes.",
                "encodingFormat": ["image/jpeg", "image/png", "image/webp"],
                "includes": "images/*/*",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "records",
                "name": "records",
                "key": {"@id": "records/id"},
                "field": [_field(name, kind, what) for name, kind, what in _FIELDS],
            }
        ],
    }


def _field(name: str, kind: str, what: str) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"records/{name}",
        "name": name,
        "description": what,
        "dataType": kind,
        "source": {"fileSet": {"@id": "record-files"}, "extract": {"column": name}},
    }
    return field | ({"repeated": True} if name == "answer" else {})


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
