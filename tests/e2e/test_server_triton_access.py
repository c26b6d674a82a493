"""The standard client where the server asks for a token, and where it speaks TLS."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.served_models import colour_answers, colour_bundle
from tests.serving import running_server

triton = pytest.importorskip("tritonclient.http", reason="the standard client, tritonclient[http], is not installed")
aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient[http] with aiohttp is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="the standard client, tritonclient[http], is not installed")
pytestmark = pytest.mark.e2e

MODEL = "colours"
TOKEN = "0123456789abcdef0123"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PIXELS = np.full((1, 4, 4, 3), 40, np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_bundle(tmp_path_factory.mktemp("access") / "bundle")


@pytest.fixture(scope="module")
def guarded(bundle: Path) -> Iterator[str]:
    token = bundle.parent / "token"
    token.write_text(TOKEN)
    with running_server(bundle, "--model-name", MODEL, "--token-file", str(token)) as address:
        yield urlsplit(address).netloc


def _images(module: Any) -> Any:
    return module.InferInput("image", [1, 4, 4, 3], "UINT8").set_data_from_numpy(PIXELS)


def _check(result: Any) -> None:
    np.testing.assert_allclose(result.as_numpy("logits"), colour_answers(PIXELS)[1], rtol=1e-5)


def test_with_the_token_everything_answers(guarded: str) -> None:
    with triton.InferenceServerClient(guarded) as client:
        _check(client.infer(MODEL, [_images(triton)], headers=dict(BEARER)))
        assert client.is_model_ready(MODEL, headers=dict(BEARER)) is True
        assert client.get_server_metadata(headers=dict(BEARER))["name"] == "edgetune"
        assert client.get_model_repository_index(headers=dict(BEARER))[0]["name"] == MODEL


@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_without_it_only_the_probes_do(guarded: str, headers: dict[str, str] | None) -> None:
    with triton.InferenceServerClient(guarded) as client:
        assert client.is_server_live() is True
        assert client.is_server_ready() is True
        assert client.is_model_ready(MODEL, headers=headers) is False
        for ask in (lambda: client.infer(MODEL, [_images(triton)], headers=headers), client.get_server_metadata):
            with pytest.raises(utils.InferenceServerException, match="this server asks for a bearer token") as caught:
                ask()
            assert caught.value.status() == "401"


def test_the_asyncio_client_sends_it_too(guarded: str) -> None:
    async def main() -> None:
        async with aio.InferenceServerClient(guarded) as client:
            _check(await client.infer(MODEL, [_images(aio)], headers=dict(BEARER)))
            with pytest.raises(utils.InferenceServerException, match="asks for a bearer token"):
                await client.infer(MODEL, [_images(aio)])

    asyncio.run(main())


@pytest.fixture(scope="module")
def certificate(bundle: Path) -> tuple[Path, Path]:
    """A self-signed certificate of the loopback address, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    files = bundle.parent / "tls.pem", bundle.parent / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-out", str(files[0]), "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture(scope="module")
def encrypted(bundle: Path, certificate: tuple[Path, Path]) -> Iterator[str]:
    files = ["--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1])]
    with running_server(bundle, "--model-name", MODEL, *files) as address:
        assert address.startswith("https://")
        yield urlsplit(address).netloc


def _trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_over_tls(encrypted: str, certificate: tuple[Path, Path]) -> None:
    options = {"ssl": True, "ssl_context_factory": lambda: _trusting(certificate[0])}
    with triton.InferenceServerClient(encrypted, **options) as client:
        assert client.is_server_ready() is True
        _check(client.infer(MODEL, [_images(triton)]))
        waiting = [client.async_infer(MODEL, [_images(triton)]) for _ in range(8)]
        for handle in waiting:
            _check(handle.get_result(timeout=30))


def test_over_tls_with_asyncio(encrypted: str, certificate: tuple[Path, Path]) -> None:
    async def main() -> None:
        context = _trusting(certificate[0])
        async with aio.InferenceServerClient(encrypted, ssl=True, ssl_context=context) as client:
            assert await client.is_model_ready(MODEL) is True
            _check(await client.infer(MODEL, [_images(aio)]))

    asyncio.run(main())


def test_a_certificate_that_is_not_trusted_ends_it(encrypted: str) -> None:
    with triton.InferenceServerClient(encrypted, ssl=True) as client, pytest.raises(ssl.SSLCertVerificationError):
        client.is_server_ready()
