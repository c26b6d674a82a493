"""The engine cache's files: what is damaged or made for another machine is refused, with both sides named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.core import engine_files
from edgetune.core.config import to_dict
from edgetune.core.engine_files import (
    ENGINE_NAME,
    SIDECAR_NAME,
    check_engine,
    check_host,
    engine_cache,
    find_engines,
    load_engine,
    read_sidecar,
    record_parity,
)
from edgetune.core.engine_record import (
    AMPERE_PLUS,
    SAME_COMPUTE_CAPABILITY,
    TENSORRT_RTX,
    BuildOptions,
    EngineHost,
    EngineKey,
    EngineParity,
    PrecisionProof,
)
from edgetune.core.errors import EngineError, EngineMismatchError
from edgetune.core.files import canonical_json, pretty_json, sha256_of_bytes
from tests.unit.core.engine_records import (
    ENGINE,
    HOST,
    KEY,
    RTX_ANYWHERE,
    engine_record,
    host_with,
    key_with,
    write_engine,
)

NO_GPU = host_with(gpu="", compute_capability="", driver="")
PARITY = EngineParity(HOST, "PASS", images=64, top1_agreement=1.0, sqnr_db=None, created="2026-02-01T00:00:00+00:00")


def test_an_engine_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record, engine = load_engine(write_engine(tmp_path), HOST)
    assert record == engine_record()
    assert engine == ENGINE


def test_every_byte_of_the_sidecar_counts(tmp_path: Path) -> None:
    """Every third one, to save time: no value, name or bracket is without one."""
    path = write_engine(tmp_path) / SIDECAR_NAME
    content = path.read_bytes()
    for index in range(0, len(content), 3):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(EngineError, match=r"engine\.json") as caught:
            read_sidecar(tmp_path)
        assert "edgetune build" in caught.value.hint


def _without(content: dict[str, Any]) -> None:
    del content["sha256"]


def _with_more(content: dict[str, Any]) -> None:
    content["speed"] = 1


def _of_next_year(content: dict[str, Any]) -> None:
    content["schema_version"] = 2


def _of_no_schema(content: dict[str, Any]) -> None:
    del content["schema_version"]


def _faster(content: dict[str, Any]) -> None:
    content["build_s"] = 0.1


def _without_digest(content: dict[str, Any]) -> None:
    del content["digest"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without, "its digest does not match"),
        (_with_more, "its digest does not match"),
        (_of_next_year, "schema version 2, this edgetune reads 1"),
        (_of_no_schema, "schema version None, this edgetune reads 1"),
        (_faster, "changed after it was written: its digest does not match"),
        (_without_digest, "its digest does not match"),
    ],
)
def test_a_sidecar_that_was_edited_says_how(change: Any, words: str, tmp_path: Path) -> None:
    path = write_engine(tmp_path) / SIDECAR_NAME
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(json.dumps(content, indent=2).encode() + b"\n")
    with pytest.raises(EngineError, match=words):
        read_sidecar(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"), [(_without, r"lacks \['sha256'\]"), (_with_more, r"unknown keys \['speed'\]")]
)
def test_a_sidecar_of_other_keys_names_them(change: Any, words: str, tmp_path: Path) -> None:
    """Whole and closed by its own digest, as another edgetune may have written it."""
    content = to_dict(engine_record())
    change(content)
    write_engine(tmp_path)
    text = pretty_json({**content, "digest": sha256_of_bytes(canonical_json(content))})
    (tmp_path / SIDECAR_NAME).write_bytes(text)
    with pytest.raises(EngineError, match=words):
        read_sidecar(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1, "build_s": NaN}'],
    ids=["empty", "list", "null", "no text", "deep", "NaN"],
)
def test_a_sidecar_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write_engine(tmp_path) / SIDECAR_NAME
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"engine\.json"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize("missing", [SIDECAR_NAME, ENGINE_NAME])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    (write_engine(tmp_path) / missing).unlink()
    with pytest.raises(EngineError, match=missing.replace(".", r"\.")):
        load_engine(tmp_path, HOST)


@pytest.mark.parametrize("index", [0, len(ENGINE) // 2, len(ENGINE) - 1])
def test_a_changed_byte_of_the_engine_is_found(index: int, tmp_path: Path) -> None:
    path = write_engine(tmp_path) / ENGINE_NAME
    path.write_bytes(ENGINE[:index] + bytes([ENGINE[index] ^ 1]) + ENGINE[index + 1 :])
    with pytest.raises(EngineError, match=rf"model\.engine was changed .* {len(ENGINE)} bytes"):
        load_engine(tmp_path, HOST)


@pytest.mark.parametrize("engine", [b"", ENGINE[:-1], ENGINE + b"\0"], ids=["empty", "shorter", "longer"])
def test_an_engine_of_another_length_is_found(engine: bytes, tmp_path: Path) -> None:
    (write_engine(tmp_path) / ENGINE_NAME).write_bytes(engine)
    with pytest.raises(EngineError, match=rf": {len(engine)} bytes .*\({len(ENGINE)} bytes\)"):
        check_engine(tmp_path)


def test_the_bytes_that_are_returned_are_the_bytes_that_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may put a new engine there at any time."""
    path = write_engine(tmp_path) / ENGINE_NAME
    monkeypatch.setattr(engine_files, "check_host", lambda *_: path.write_bytes(b"the bytes of another!!"))
    try:
        _, engine = load_engine(tmp_path, HOST)
    except EngineError:
        return
    assert engine == ENGINE


@pytest.mark.parametrize(
    ("key", "host"),
    [
        (KEY, HOST),
        (key_with(version_compatible=True), host_with(backend_version="10.16.1.11")),
        (key_with(version_compatible=True), host_with(backend_version="11.0.0.114")),
        (key_with(host_with(backend_version="10.3.0"), version_compatible=True), HOST),  # 10.13 is newer than 10.3
        (key_with(hardware_compatible=AMPERE_PLUS), host_with(gpu="L4", compute_capability="8.9", driver="1")),
        (key_with(hardware_compatible=AMPERE_PLUS), host_with(gpu="RTX 5090", compute_capability="12.0")),
        (key_with(hardware_compatible=SAME_COMPUTE_CAPABILITY), host_with(gpu="RTX 3080", driver="1")),
        (key_with(RTX_ANYWHERE, targets=("sm86", "sm120")), host_with(RTX_ANYWHERE, gpu="G", compute_capability="8.6")),
        (key_with(RTX_ANYWHERE, targets=("sm120",)), host_with(RTX_ANYWHERE, gpu="G", compute_capability="12.0")),
        (key_with(RTX_ANYWHERE), host_with(RTX_ANYWHERE, gpu="G", compute_capability="8.9", driver="1")),
    ],
)
def test_an_engine_fits_the_hosts_it_was_built_for(key: EngineKey, host: EngineHost) -> None:
    check_host(key, host)


@pytest.mark.parametrize(
    ("key", "host", "built", "here"),
    [
        (KEY, RTX_ANYWHERE, "backend tensorrt,", "has tensorrt-rtx."),
        (KEY, host_with(backend_version="10.16.1.11"), "tensorrt version 10.13.3.9,", "has 10.16.1.11."),
        (KEY, host_with(gpu="NVIDIA L4", compute_capability="8.9"), "compute capability 8.6,", "has 8.9."),
        (KEY, host_with(gpu="RTX 3080"), "GPU NVIDIA RTX A4000,", "has RTX 3080."),
        (KEY, host_with(driver="570.86.10"), "driver 580.65.06,", "has 570.86.10."),
        (KEY, NO_GPU, "compute capability 8.6,", "has none."),
        (key_with(version_compatible=True), host_with(backend_version="10.3.0"), "10.13.3.9,", "has 10.3.0."),
        (key_with(version_compatible=True), RTX_ANYWHERE, "backend tensorrt,", "has tensorrt-rtx."),
        (
            key_with(hardware_compatible=AMPERE_PLUS),
            host_with(gpu="Tesla T4", compute_capability="7.5"),
            "compute capability 8.0 or newer,",
            "has Tesla T4.",
        ),
        (key_with(hardware_compatible=AMPERE_PLUS), NO_GPU, "compute capability 8.0 or newer,", "has none."),
        (
            key_with(hardware_compatible=AMPERE_PLUS),
            host_with(backend_version="10.3.0", compute_capability="8.9"),
            "tensorrt version 10.13.3.9,",
            "has 10.3.0.",
        ),
        (
            key_with(hardware_compatible=SAME_COMPUTE_CAPABILITY),
            host_with(gpu="L4", compute_capability="8.9"),
            "compute capability 8.6,",
            "has 8.9.",
        ),
        (
            key_with(RTX_ANYWHERE, targets=("sm86", "sm89")),
            host_with(RTX_ANYWHERE, gpu="G", compute_capability="12.0"),
            "compiled for sm86, sm89,",
            "has sm120.",
        ),
        (key_with(RTX_ANYWHERE, targets=("sm86",)), RTX_ANYWHERE, "compiled for sm86,", "has no GPU."),
        (
            key_with(RTX_ANYWHERE, targets=("sm86",)),
            host_with(RTX_ANYWHERE, backend_version="1.6.0", gpu="G", compute_capability="8.6"),
            "tensorrt-rtx version 1.7.1.116,",
            "has 1.6.0.",
        ),
    ],
)
def test_one_sentence_names_what_it_was_built_for_and_what_is_here(
    key: EngineKey, host: EngineHost, built: str, here: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineMismatchError) as caught:
        check_host(key, host)
    message = caught.value.message
    assert built in message
    assert message.endswith(here)
    assert message.count(". ") == 0
    assert "edgetune build" in caught.value.hint
    with pytest.raises(EngineMismatchError):
        load_engine(write_engine(tmp_path, engine_record(key)), host)


def test_damage_is_told_before_a_mismatch(tmp_path: Path) -> None:
    (write_engine(tmp_path) / ENGINE_NAME).write_bytes(b"damaged")
    with pytest.raises(EngineError, match="was changed") as caught:
        load_engine(tmp_path, NO_GPU)
    assert not isinstance(caught.value, EngineMismatchError)


def test_the_fingerprint_is_of_everything_that_the_engine_depends_on() -> None:
    changed = [
        dataclasses.replace(KEY, host=dataclasses.replace(HOST, **{field.name: "other"}))
        for field in dataclasses.fields(HOST)
    ]
    changed += [
        dataclasses.replace(KEY, onnx_sha256="other"),
        dataclasses.replace(KEY, calibration_sha256="other"),
        dataclasses.replace(KEY, precision="other"),
    ]
    assert {field.name for field in dataclasses.fields(KEY)} == {
        "host", "onnx_sha256", "calibration_sha256", "precision", "options"
    }  # fmt: skip
    options: dict[str, Any] = {
        "min_batch": 2, "opt_batch": 2, "max_batch": 9, "workspace_bytes": 1, "optimization_level": 1,
        "targets": ("sm86",), "hardware_compatible": AMPERE_PLUS, "version_compatible": True,
    }  # fmt: skip
    assert set(options) == {field.name for field in dataclasses.fields(BuildOptions)}
    changed += [key_with(**{field: value}) for field, value in options.items()]
    prints = {key.fingerprint for key in (KEY, *changed)}
    assert len(prints) == 1 + len(changed)
    assert key_with().fingerprint == KEY.fingerprint
    assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in prints)


def test_engines_of_one_model_are_found_newest_first(tmp_path: Path) -> None:
    days = {"a": "2026-01-02", "b": "2026-01-03", "c": "2026-01-01"}
    for name, day in days.items():
        write_engine(tmp_path / name, engine_record(created=f"{day}T00:00:00+00:00"))
    other = dataclasses.replace(KEY, onnx_sha256="c" * 64)
    write_engine(tmp_path / "other-model", engine_record(other))
    (write_engine(tmp_path / "damaged") / SIDECAR_NAME).write_bytes(b"{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_bytes(b"")
    found = find_engines(tmp_path, KEY.onnx_sha256)
    assert [folder.name for folder, _ in found] == ["b", "a", "c"]
    assert [record.created[:10] for _, record in found] == ["2026-01-03", "2026-01-02", "2026-01-01"]
    assert [folder.name for folder, _ in find_engines(tmp_path, "c" * 64)] == ["other-model"]


def test_no_cache_holds_no_engines(tmp_path: Path) -> None:
    assert find_engines(tmp_path / "nowhere", KEY.onnx_sha256) == []


def test_a_half_written_engine_is_not_found(tmp_path: Path) -> None:
    """The hidden folder in which `output_folder` lets an engine grow, left by a process that was killed."""
    write_engine(tmp_path / f".{KEY.fingerprint}.4711-0123abcd.partial")
    assert find_engines(tmp_path, KEY.onnx_sha256) == []


def test_the_engines_own_verdict_is_kept_in_its_sidecar(tmp_path: Path) -> None:
    write_engine(tmp_path)
    assert record_parity(tmp_path, PARITY, engine_record().sha256) == dataclasses.replace(
        engine_record(), parity=PARITY
    )
    assert load_engine(tmp_path, HOST) == (dataclasses.replace(engine_record(), parity=PARITY), ENGINE)
    again = dataclasses.replace(PARITY, verdict="FAIL", sqnr_db=3.5, top1_agreement=0.25)
    record_parity(tmp_path, again, engine_record().sha256)
    assert read_sidecar(tmp_path).parity == again
    assert sorted(path.name for path in tmp_path.iterdir()) == [SIDECAR_NAME, ENGINE_NAME]


def test_no_verdict_is_written_into_a_damaged_sidecar(tmp_path: Path) -> None:
    path = write_engine(tmp_path) / SIDECAR_NAME
    damaged = path.read_bytes().replace(b"PASS", b"pass").replace(b"2.0", b"3.0")
    path.write_bytes(damaged)
    with pytest.raises(EngineError, match="digest does not match"):
        record_parity(tmp_path, PARITY, engine_record().sha256)
    assert path.read_bytes() == damaged


def test_int8_holds_until_a_layer_is_known_to_be_lost() -> None:
    assert PrecisionProof(planned={"int8": 2}, seen={"int8": 1}, lost={}, unseen=("conv2",)).holds
    assert not PrecisionProof(planned={"int8": 2}, seen={"int8": 2}, lost={"conv1": "float weight"}).holds


def test_the_cache_is_the_users_unless_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    assert engine_cache() == tmp_path / "engines"
    assert engine_cache(tmp_path / "mine") == tmp_path / "mine"


def test_the_rtx_backend_has_the_name_that_users_type() -> None:
    assert RTX_ANYWHERE.backend == TENSORRT_RTX == "tensorrt-rtx"


def test_a_sidecar_from_before_a_field_with_a_default_is_still_read(tmp_path: Path) -> None:
    content = to_dict(engine_record())
    del content["parity"]
    write_engine(tmp_path)
    text = pretty_json({**content, "digest": sha256_of_bytes(canonical_json(content))})
    (tmp_path / SIDECAR_NAME).write_bytes(text)
    assert read_sidecar(tmp_path) == engine_record()


def test_no_verdict_is_given_to_an_engine_that_was_not_measured(tmp_path: Path) -> None:
    write_engine(tmp_path)
    before = (tmp_path / SIDECAR_NAME).read_bytes()
    with pytest.raises(EngineError, match="was replaced while it was judged"):
        record_parity(tmp_path, PARITY, "0" * 64)
    assert (tmp_path / SIDECAR_NAME).read_bytes() == before
