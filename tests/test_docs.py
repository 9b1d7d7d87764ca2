"""The documentation is true: links lead somewhere, commands exist, examples are accepted, fields are described."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_contract.model import metadata
from suture_stitching.data import Columns, DatasetSpec, SplitRule
from suture_worker.config import (
    BrokerConfig,
    HubConfig,
    PolicyConfig,
    Rule,
    StateConfig,
    TaskLimits,
    TaskStoreConfig,
    load_site,
)

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
COMMANDS = typer.main.get_command(app)  # groups; `load` gives their commands


def by_path(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def swallowed(text):
    """Return lines of code that a list before them swallows: a sentence must stand between."""
    text = re.sub(r"^```.*?^```", "```", text, flags=re.MULTILINE | re.DOTALL)
    lines, within, blank = [], False, True
    for line in text.splitlines():
        if re.match(r"- |\d+\. ", line):
            within = True
        elif blank and line[:1].strip():
            within = False
        elif blank and within and re.match(r" {4}\S", line):
            lines.append(line.strip())
        blank = not line.strip()
    return lines


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_code_is_shown_as_code(page):
    assert swallowed(page.read_text()) == []


def test_code_that_a_list_swallows_would_be_noticed():
    assert swallowed("- an item\n\n    make it\n") == ["make it"]
    assert swallowed("1. a step\n\n       make it\n\nThen:\n\n    make it\n\n- an item\n") == []


def headings(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in headings(found), target


def command_lines():
    for page in PAGES:
        lines = re.findall(r"^    ((?:docker compose exec hub )?suture .+)$", page.read_text(), re.MULTILINE)
        for line in lines:
            yield pytest.param(line.removeprefix("docker compose exec hub "), id=f"{by_path(page)}: {line[:60]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_commands_and_their_options_exist(line):
    words = shlex.split(line, comments=True)[1:]
    command, path = COMMANDS, ["suture"]
    if words[0] == "--hub":
        del words[:2]
    elif words[0].startswith("--"):  # `suture --version`: an option of the whole, and no command
        assert words[0] in {option for parameter in COMMANDS.params for option in parameter.opts}
        return
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {' '.join([*path, name])}"
        command, path = command.load(name), [*path, name]  # type: ignore[attr-defined]
    assert not hasattr(command, "commands"), f"{' '.join(path)} needs a further word"
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert {word for word in words if word.startswith("--")} <= known
    required = [
        parameter for parameter in command.params if parameter.required and parameter.param_type_name == "argument"
    ]
    assert len([word for word in words if not word.startswith("-")]) >= len(required)


def site_files():
    for page in PAGES:
        for index, text in enumerate(blocks(page, "toml")):
            yield pytest.param(text, id=f"{by_path(page)} {index}")


@pytest.mark.parametrize("text", list(site_files()))
def test_examples_of_site_toml_are_accepted(text, tmp_path):
    (tmp_path / "site.toml").write_text(text)
    assert load_site(tmp_path / "site.toml").datasets


def test_codes_that_pages_name_are_among_the_error_codes():
    codes = set(re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs/reference/errors.md").read_text(), re.MULTILINE))
    nouns = {code.partition(".")[0] for code in codes}
    named = {
        (by_path(page), word)
        for page in PAGES
        if page.parent.name != "decisions"  # these name what only hub and site say to each other, too
        for word in re.findall(r"`([a-z]+\.[a-z_]+)`", page.read_text())
        if word.partition(".")[0] in nouns and not (page.parent / word).exists()
    }
    # A file, or what is called so in Python or TOML.
    files = r".*\.(toml|json|jsonl|yaml|safetensors|sig|html|onnx|ts|head|link|csv)"
    other = rf"{files}|columns\.(features|group)|hub\.(load|publish)|mlflow\.[a-z]+"
    unknown = [(page, word) for page, word in sorted(named) if word not in codes and not re.fullmatch(other, word)]
    assert unknown == []


def test_a_wrong_example_of_site_toml_would_be_noticed(tmp_path):
    (tmp_path / "site.toml").write_text('[hub]\nurl = "https://hub.example"\ncolour = "red"\n')
    with pytest.raises(SutureError):
        load_site(tmp_path / "site.toml")


def test_every_field_of_a_dataset_is_described():
    text = (ROOT / "docs/site-operator.md").read_text()
    for field in [*DatasetSpec.model_fields, *Columns.model_fields, *SplitRule.model_fields]:
        assert re.search(rf"\b{field}\b", text), field


@pytest.mark.parametrize(
    "table",
    [HubConfig, StateConfig, BrokerConfig, TaskStoreConfig, TaskLimits, PolicyConfig, Rule],
    ids=lambda kind: kind.__name__,
)
def test_every_other_key_of_site_toml_is_described(table):
    text = (ROOT / "docs/site-operator.md").read_text()
    for name, field in table.model_fields.items():
        key = getattr(field.validation_alias, "choices", [name])[0]
        assert re.search(rf"\b{key}\b( =|`)|\[\[policy\.{key}\]\]", text), key


def test_every_field_of_suture_json_is_described_and_its_example_is_accepted():
    page = ROOT / "docs/suture-json.md"
    (example,) = blocks(page, "json")
    accepted = metadata.ModelMetadata.from_json(example)
    assert json.loads(accepted.to_json())["labels"] == ["normal", "polyp"]
    kinds = [metadata.InputSpec, metadata.OutputSpec, metadata.TrainingData, metadata.EvaluationData]
    kinds += [metadata.Normalisation, metadata.Lineage, metadata.ModelMetadata]
    fields = {field.serialization_alias or name for kind in kinds for name, field in kind.model_fields.items()}  # type: ignore[attr-defined]
    for field in fields:
        assert f"`{field}`" in page.read_text(), field


#: Pages for people whose first language is not English.
GUIDES = [
    ROOT / name
    for name in (
        "README.md",
        "docs/data-scientist.md",
        "docs/site-operator.md",
        "docs/hub-operator.md",
        "docs/guide/library.md",
        "docs/data-protection.md",
        "docs/stitching.md",
    )
]
MOST_WORDS = 30


def sentences(text):
    """Yield the sentences of a page's prose: no code, headings or tables."""
    text = re.sub(r"^```.*?^```", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(#|\||    ).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("et al.", "et al")
    for paragraph in re.split(r"\n\s*\n|^ *(?:-|\d+\.) ", text, flags=re.MULTILINE):
        yield from filter(None, re.split(r"(?<=[.!?])[*_)]*\s+", " ".join(paragraph.split())))


@pytest.mark.parametrize("page", GUIDES, ids=by_path)
def test_sentences_of_guides_are_short(page):
    assert [one for one in sentences(page.read_text()) if len(one.split()) > MOST_WORDS] == []


def test_a_long_sentence_would_be_noticed():
    text = "# A title\n\nShort. " + "word " * 20 + "\n" + "word " * 20 + "end.\n\n- An item\n- another\n\n| a table |\n"
    assert [len(one.split()) for one in sentences(text)] == [1, 41, 2, 1]


def test_every_decision_is_listed():
    index = (ROOT / "docs/decisions/README.md").read_text()
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        title = page.read_text().splitlines()[0].removeprefix("# ").partition(". ")[2]
        assert f"[{title}]({page.name})" in index
        for part in ("Context", "Decision", "Consequences", "Alternatives"):
            assert f"**{part}.**" in page.read_text(), f"{page.name}: {part}"


def test_no_change_is_listed_twice():
    """Two sides of a merge may both be kept: entries that begin alike are one."""
    text = (ROOT / "CHANGELOG.md").read_text()
    begins = [
        " ".join(re.sub(r"\W", " ", entry).split()[:7]) for entry in re.findall(r"^- ([^\n]+)", text, re.MULTILINE)
    ]
    assert [words for words in set(begins) if begins.count(words) > 1] == []


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            if not target.startswith("https://"):
                waiting.append((page.parent / target).resolve())
    assert set(PAGES) <= reached


def test_pages_and_commands_that_messages_name_exist():
    sources = [
        path
        for folder in ("contract", "stitching", "client", "service", "worker", "local")
        for path in (ROOT / folder).rglob("*.py")
    ]
    text = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r"\bdocs/[\w/.-]+\.md", text))
    assert named
    assert [page for page in named if not (ROOT / page).exists()] == []
    for words in re.findall(r"`suture ((?:[a-z]+ ?)+)", text):
        command = COMMANDS
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"suture {words}"
            command = command.load(word)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("page", "parts"), [("docker-compose", 1), ("kubernetes", 2), ("slurm", 1), ("systemd", 1)])
def test_an_installation_is_told_from_copy_to_remove(page, parts):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for step in ("Copy", "Start", "Check", "Upgrade", "Back up", "Remove"):
        assert len(re.findall(rf"^(?:## {step}$|\*\*{step}\b)", text, re.MULTILINE)) >= parts, step
