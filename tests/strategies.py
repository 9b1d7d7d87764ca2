"""Any `suture.json` that is allowed, with texts that try to be more than text."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from suture_contract.model.metadata import ModelMetadata

HOSTILE = (
    "---",
    "...",
    "--- # x",
    "# heading",
    "<script>alert(1)</script>",
    "<!-- x",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "[a]: https://evil.example",
    "<https://evil.example>",
    "| a | b |",
    "|---|---|",
    "\\| \\",
    "```",
    "~~~",
    "`code`",
    "    code",
    "* a",
    "- a",
    "+ a",
    "1. a",
    "2) a",
    "> a",
    "===",
    "***",
    "_a_ **b** ~~c~~",
    "&lt;b&gt; &#60;",
    "a: b",
    "!!python/object/apply:os.system ['x']",
    "&anchor *anchor",
    "{a: b}",
    "[a, b]",
    "yes",
    "null",
    "0x10",
    "1e3",
    "2020-01-01",
    "'\"",
    "%TAG",
    "@x",
    "?",
    "trailing  ",
    "x\\",
)
_letters = st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_piece = st.sampled_from(HOSTILE) | st.text(_letters, min_size=1, max_size=12)
lines = st.lists(_piece, min_size=1, max_size=3).map("".join)
labels = lines.filter(lambda text: 0 < len(text) <= 200)
texts = st.lists(lines | st.sampled_from(["", "\t", " "]), min_size=1, max_size=4).map("\n".join) | st.sampled_from(
    ["a\r\n---\r\nb", "", " "]
)
numbers = st.floats(-1e9, 1e9, allow_nan=False)
names = st.from_regex(r"[a-z][a-z0-9_.]{0,6}[a-z0-9]", fullmatch=True).filter(
    lambda n: ".." not in n and ".git" not in n
)
repos = st.builds("{}/{}".format, names, names)


def digits(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=count, max_size=count)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    channels, axes = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    per_channel = st.lists(numbers, min_size=channels, max_size=channels)
    positive = st.floats(1e-3, 1e3)
    return {
        "format": draw(st.sampled_from(["image", "table", "signal", "sequence"])),
        "modality": draw(maybe(texts)),
        "num_channels": channels,
        "spatial_shape": draw(st.lists(maybe(st.integers(1, 999)), min_size=axes, max_size=axes)),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "value_range": draw(maybe(st.tuples(st.floats(-5, 0), st.floats(1, 5)))),
        "spacing": draw(maybe(st.lists(positive, min_size=axes, max_size=axes))),
        "preprocessing": draw(
            maybe(
                st.fixed_dictionaries(
                    {"mean": per_channel, "std": st.lists(positive, min_size=channels, max_size=channels)}
                )
            )
        ),
        "channel_def": draw(maybe(st.lists(labels, min_size=channels, max_size=channels))),
    }


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a `suture.json`, nulls included."""
    task = draw(st.sampled_from(["classification", "multilabel", "segmentation", "regression"]))
    named = draw(st.lists(labels, min_size=1, max_size=4, unique=True))
    metrics = draw(maybe(st.dictionaries(labels, numbers, min_size=1, max_size=3)))
    member = st.fixed_dictionaries({"repo": repos, "revision": digits(40), "sha256": digits(64)})
    lineage = st.fixed_dictionaries(
        {
            "job": st.text("abc_0123", min_size=1, max_size=9),
            "requester": names,
            "members": st.lists(member, min_size=1, max_size=3),
            "candidate": st.just("c03"),
        }
    )
    data = {"n": st.integers(1, 10**6), "split": st.sampled_from(["validation", "test"]), "description": maybe(texts)}
    return {
        "schema": "suture.model/1",
        "task": task,
        "inputs": {draw(labels): draw(inputs())},
        "outputs": {draw(labels): {"format": "logits", "num_channels": len(named)}},
        "labels": None if task == "regression" else named,
        "license": draw(st.sampled_from(["Apache-2.0", "CC-BY-4.0", "MIT"]) | labels),
        "description": draw(maybe(texts)),
        "intended_use": draw(maybe(texts)),
        "limitations": draw(maybe(texts)),
        "training_data": draw(
            maybe(st.fixed_dictionaries({"description": maybe(texts), "n": maybe(st.integers(0, 9**9))}))
        ),
        "authors": draw(st.lists(labels, max_size=2)),
        "citation": draw(maybe(texts)),
        "doi": draw(maybe(st.from_regex(r"10\.[0-9]{4,9}/[!-~]{1,30}", fullmatch=True))),
        "references": draw(st.lists(texts, max_size=2)),
        "eval_metrics": metrics,
        "eval_data": draw(maybe(st.fixed_dictionaries(data))) if metrics else None,
        "lineage": draw(maybe(lineage)),
    }


metadata = documents().map(ModelMetadata.model_validate)
