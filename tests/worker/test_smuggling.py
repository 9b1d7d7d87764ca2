"""A hostile child writes what it likes; what leaves is schema-bounded numbers in the one way there is to write them.

Each test hides something at a place a child controls. Either the gate refuses it and nothing is noted as sent, or what
leaves is the very bytes that an honest child's numbers give.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tests.worker import conftest as make

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.errors import SutureError
from suture_worker.egress.log import verify
from suture_worker.egress.outbox import STEPS, Outbox
from suture_worker.folder import Assignment, Run, TaskFolder, TaskProgress, Terms
from suture_worker.leased_task import Claim, LeasedTask

SECRET = "PATIENT-0042"
FIT, EVALUATE = make.leased("fit"), make.leased("evaluate")
STITCHES = save(make.stitches(), metadata={"input_shape": "1,6,6"})
RUN = Run(device="cpu", threads=1, memory_bytes=1, cpu_seconds=1, min_samples=11, dataset=None)

fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def site(task):
    """A site's outbox and the folder of a task whose child is about to write."""
    with tempfile.TemporaryDirectory() as place:
        parsed = LeasedTask.parse(task)
        folder = TaskFolder(Path(place), parsed.id)
        folder.create(Assignment(task=parsed, dataset=None))
        folder.note_terms(Terms(min_samples=11))
        folder.begin_run(RUN)
        box = Outbox(Path(place) / "outbox", min_samples=11)
        yield box, parsed, folder
        box.close()


def leaves(task, files, candidates=None):
    """Return what leaves when a child writes `files`, None if it is refused, after checking it against the log."""
    with site(task) as (outbox, parsed, folder):
        for name, content in files.items():
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder.results / name).write_bytes(text)
        if candidates is not None:
            (folder.candidates / "candidates.json").write_text(json.dumps(candidates))
        log = Path(outbox._log.path)
        messages, refused = [], None
        try:
            messages = outbox.result(parsed, folder)
        except SutureError as error:
            refused = error
        if refused is not None:
            assert refused.code in ("outbox.refused", "policy.too_few_samples")
            assert SECRET not in str(refused)
            assert verify(log) == []
            return None
        contents = [m.content if isinstance(m.content, bytes) else m.content.read_bytes() for m in messages]
        noted = [(entry.sha256, entry.size) for entry in verify(log)]
        assert noted == [(hashlib.sha256(content).hexdigest(), len(content)) for content in contents]
        for message, content in zip(messages, contents, strict=True):
            if isinstance(message.content, bytes):
                assert (log.parent / "documents" / message.sha256).read_bytes() == content
        return contents


def fit(document=None, candidates=None, stitches=STITCHES):
    files = {
        "document.json": {"n": 60} if document is None else document,
        "candidates.json": make.candidates(FIT) if candidates is None else candidates,
        "stitches.safetensors": stitches,
    }
    return leaves(FIT, files)


def evaluate(document):
    return leaves(EVALUATE, {"document.json": document}, make.candidates(EVALUATE))


HONEST_FIT, HONEST_EVALUATION = fit(), evaluate(make.evaluation())


def test_an_honest_child_s_results_leave():
    assert len(HONEST_FIT) == 3
    assert HONEST_FIT[1] == STITCHES
    assert len(HONEST_EVALUATION) == 1


# Documents

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([SECRET, "\u202e", "0.5", "1e308", "", " ", "\x00", "ｎ", "n\u0301"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(document, path=()):
    """Return the way to every value in a document."""
    found = [path]
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def put(document, path, value):
    if not path:
        return value
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def numbers_and_words(content):
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from numbers_and_words(value)
    elif isinstance(content, list):
        for value in content:
            yield from numbers_and_words(value)
    else:
        yield content


def honest_words(honest):
    return {word for text in honest for word in numbers_and_words(parsed(text)) if isinstance(word, str)}


def parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


#: What no measured document of this task may say beside the words an honest one says.
WORDS = honest_words([HONEST_FIT[0], HONEST_EVALUATION[0]]) | {
    *("accuracy", "single", "ensemble", "routed", "stitched", "unstitched", "no_points", "no_match", "gate", "own"),
    *("difference", "withdraws", "near", "far", "document", "fence", "metric", "n", "higher_is_better"),
}


def check_bounded(content, *, exact=("alpha",)):
    """Every word is one that the hub knows, a node of a graph or a tensor's place; every number has few digits."""
    text = json.loads(content)
    assert content == json.dumps(text, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()

    def check(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                assert name in WORDS or name.isascii(), name
                assert len(name) <= 20
                check(inner, name)
        elif isinstance(value, list):
            for inner in value:
                check(inner, key)
        elif isinstance(value, str):
            graph = value.startswith("n") and value[1:].removesuffix(".0").isdecimal() and len(value) <= 10
            assert value in WORDS or graph or (key in ("weight", "bias") and len(value) <= 32), value
        elif key in ("near", "far"):
            assert float(f"{value:.6g}") == value
        elif isinstance(value, float) and key not in exact:
            assert math.isfinite(value)
            assert value == round(value, 4)
            assert len(f"{abs(value):.6g}".replace(".", "").lstrip("0")) <= 6 or abs(value) >= 1e6
            assert float(f"{value:.6g}") == value
            assert not (value == 0 and math.copysign(1, value) < 0)
        elif isinstance(value, int) and not isinstance(value, bool):
            assert abs(value) <= 10**12

    check(text)


@fuzzed
@given(data=st.data())
def test_nothing_but_bounded_numbers_leaves_with_an_evaluation(data):
    document = make.evaluation()
    path = data.draw(st.sampled_from(places(document)))
    left = evaluate(json.dumps(put(document, path, data.draw(ANYTHING))).encode())
    if left is not None:
        assert SECRET.encode() not in left[0]
        check_bounded(left[0])
        Evaluation.model_validate(json.loads(left[0])["document"])


@fuzzed
@given(data=st.data())
def test_nothing_but_bounded_numbers_leaves_with_candidates(data):
    document = make.candidates(FIT)
    path = data.draw(st.sampled_from(places(document)))
    left = fit(candidates=json.dumps(put(document, path, data.draw(ANYTHING))).encode())
    if left is not None:
        assert SECRET.encode() not in left[0]
        check_bounded(left[0])
        CandidateSet.model_validate_json(left[0])


@fuzzed
@given(data=st.data(), key=st.text(max_size=30), value=ANYTHING)
def test_a_key_too_many_is_refused_wherever_it_is(data, key, value):
    for document, send in ((make.evaluation(), evaluate), (make.candidates(FIT), lambda d: fit(candidates=d))):
        objects = [path for path in places(document) if isinstance(at(document, path), dict)]
        path = data.draw(st.sampled_from(objects))
        if key in at(document, path) or key in WORDS:
            continue
        left = send(json.dumps(put(document, (*path, key), value)).encode())
        assert left is None or key.isdecimal(), "a point of a member: a number"


def at(document, path):
    for key in path:
        document = document[key]
    return document


@given(digits=st.integers(0, 2**40))
@fuzzed
def test_the_last_digits_of_a_metric_say_nothing(digits):
    hidden = 0.8123 + digits / 2**40 * 1e-5
    assert evaluate(make.evaluation(value=hidden)) == evaluate(make.evaluation(value=0.8123))


@pytest.mark.parametrize("spelling", ["0.81230000000000000000000000000000001", '"0.8123"', "8123e-4", "0.8123000"])
def test_however_a_number_is_spelt_one_spelling_leaves(spelling):
    honest = make.evaluation(value=0.8123)
    text = json.dumps(honest).replace('"value": 0.8123', f'"value": {spelling}')
    assert spelling in text
    assert evaluate(text.encode()) == evaluate(honest)


@pytest.mark.parametrize("value", [1e300, -0.5, 1.0000001, float("nan"), float("inf"), 123456.7891, "NaN"])
def test_a_value_that_no_accuracy_has_is_refused(value):
    assert evaluate(json.dumps(make.evaluation(value=0.5)).replace("0.5", json.dumps(value)).encode()) is None


def test_order_space_and_repetition_say_nothing():
    document = make.evaluation()
    spread = json.dumps(dict(reversed(document.items())), indent=7).encode() + b"\n \t" * 50
    assert evaluate(spread) == HONEST_EVALUATION
    twice = json.dumps(document).replace('"metric":', f'"metric": "{SECRET}", "metric":', 1).encode()
    assert evaluate(twice) in (None, HONEST_EVALUATION)


@pytest.mark.parametrize("name", ["patient.0042", "s0042.patient.weight", "s0.weight.a", "s12345.weight", "a" * 64])
def test_names_of_tensors_say_nothing(name):
    candidates = json.loads(json.dumps(make.candidates(FIT)).replace("s0.weight", name))
    tensors = {name if key == "s0.weight" else key: value for key, value in make.stitches().items()}
    assert fit(candidates=candidates, stitches=save(tensors)) is None


@pytest.mark.parametrize("change", [{"seed": 0x5041}, {"labels": ["bright", "dark"]}, {"labels": ["dark"]}, {"n": 61}])
def test_what_the_job_says_itself_cannot_be_chosen(change):
    assert fit(candidates={**make.candidates(FIT), **change}) is None


# Tensors


def header_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def written(text, data):
    text = text if isinstance(text, bytes) else json.dumps(text, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def spoilt():
    header, data = header_of(STITCHES)
    compact = json.dumps(header, separators=(",", ":")).encode()
    first = "s0.bias"
    later = {
        name: {**entry, "data_offsets": [offset + 8 for offset in entry["data_offsets"]]}
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return {
        "padding": written(compact + b" " * 64, data),
        "padding of tabs": written(compact + b"\t" * (-len(compact) % 8), data),
        "spaces between": written(json.dumps(header).encode(), data),
        "order of names": written(dict(reversed(header.items())), data),
        "order of keys": written({**header, first: dict(reversed(header[first].items()))}, data),
        "escapes": written(compact.replace(b"s0.bias", b"\\u0073\\u0030.bias"), data),
        "a name twice": written(compact[:-1] + b',"s0.bias":' + json.dumps(header[first]).encode() + b"}", data),
        "a note": written({**header, "__metadata__": {"input_shape": "1,6,6", "note": SECRET}}, data),
        "a shape of letters": written({**header, "__metadata__": {"input_shape": SECRET}}, data),
        "zeros before a number": written({**header, "__metadata__": {"input_shape": "0001,6,6"}}, data),
        "other digits": written({**header, "__metadata__": {"input_shape": "１,6,6"}}, data),
        "a key of a tensor": written({**header, first: {**header[first], "note": SECRET}}, data),
        "a size as text": written({**header, first: {**header[first], "shape": ["2"]}}, data),
        "a size as float": written({**header, first: {**header[first], "shape": [2.0]}}, data),
        "a size of one": written({**header, first: {**header[first], "shape": [2, 1]}}, data),
        "bytes after": STITCHES + SECRET.encode(),
        "bytes between": written({**header, **later}, SECRET.encode()[:8] + data),
        "cut short": STITCHES[:-1],
        "no header": b"",
        "a huge header": (2**62).to_bytes(8, "little") + STITCHES[8:],
        "deep nesting": written(b"[" * 100_000, data),
        "an extra tensor": save({**make.stitches(), "s9.weight": np.ones((4, 4), np.float32)}),
        "an empty tensor": save({**make.stitches(), "s9.weight": np.ones((0, 4), np.float32)}),
        "float64": save(make.stitches(**{"s0.weight": np.ones((2, 3))})),
        "float16": save(make.stitches(**{"s0.weight": np.ones((2, 3), np.float16)})),
        "text": save(make.stitches(**{"s0.bias": np.frombuffer(SECRET.encode()[:8], np.uint8)})),
        "another width": save(make.stitches(**{"s0.weight": np.ones((2, 1000), np.float32)})),
        "another length": save(make.stitches(**{"s0.bias": np.ones(3, np.float32)})),
        "infinity": save(make.stitches(**{"s0.bias": np.array([1, np.inf], np.float32)})),
    }


@pytest.mark.parametrize("way", spoilt())
def test_there_is_one_way_to_write_stitches(way):
    content = spoilt()[way]
    assert content != STITCHES
    assert fit(stitches=content) is None


@given(payload=st.integers(1, 2**22 - 1), sign=st.booleans(), quiet=st.booleans(), place=st.integers(0, 1))
@fuzzed
def test_no_payload_leaves_in_a_number_that_is_none(payload, sign, quiet, place):
    bits = (sign << 31) | (0xFF << 23) | (quiet << 22) | payload
    values = np.ones(2, np.float32)
    values[place : place + 1] = np.frombuffer(struct.pack("<I", bits), np.float32)
    assert fit(stitches=save(make.stitches(**{"s0.bias": values}))) is None


@given(position=st.integers(0, len(STITCHES) - 1), value=st.integers(0, 255))
@fuzzed
def test_no_byte_of_the_header_can_be_another(position, value):
    changed = STITCHES[:position] + bytes([value]) + STITCHES[position + 1 :]
    left = fit(stitches=changed)
    if left is None or changed == STITCHES:
        return
    header, data = header_of(changed)
    assert left[1] == changed
    # The numbers themselves may be others, and of the shape of the inputs each size.
    assert {name: entry for name, entry in header.items() if name != "__metadata__"} == {
        name: entry for name, entry in header_of(STITCHES)[0].items() if name != "__metadata__"
    }
    assert all(size.isdecimal() for size in header["__metadata__"]["input_shape"].split(","))
    assert np.isfinite(np.frombuffer(data, "<f4")).all()


# Small messages


@given(
    step=st.text(max_size=200) | st.sampled_from([SECRET, "solve", "solve "]),
    done=st.integers(0, 2**70),
    total=st.integers(0, 2**70),
    left=st.none() | st.floats(0, sys.float_info.max),
)
@fuzzed
def test_progress_says_how_far_and_nothing_else(step, done, total, left):
    with site(FIT) as (outbox, _, _):
        message = outbox.progress(
            Claim("task_fit", 1), TaskProgress(step=step, done=done, total=total, seconds_left=left)
        )
        content = json.loads(message.content)
        assert content["step"] in ("working", *STEPS)
        if content["step"] != "fetch":
            assert 0 <= content["done"] <= content["total"] <= 1000
        if left is not None:
            assert content["seconds_left"] <= 1e9
            assert float(f"{content['seconds_left']:.6g}") == content["seconds_left"]
        (entry,) = verify(outbox._log.path)
        assert entry.body.encode() == message.content


@given(code=st.text(max_size=60), correlation_id=st.text(max_size=30))
@fuzzed
def test_an_error_is_a_code_and_an_id_or_stays(code, correlation_id):
    with site(FIT) as (outbox, _, _):
        try:
            message = outbox.failure(Claim("task_fit", 1), code, correlation_id, retryable=False)
        except SutureError:
            assert verify(outbox._log.path) == []
            return
        assert message.content.isascii()
        assert len(message.content) < 250
