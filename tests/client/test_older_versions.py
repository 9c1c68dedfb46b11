"""What stays compatible: an older client with this server, and this client with an older server.

`older/` was recorded on 25 November 2026 (commit 7bea214): a bundle of that exporter, and the requests of that client
with the replies of that server. Nothing in it is ever regenerated.
"""

from __future__ import annotations

import base64
import io
import json
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import xarray
from support.contract_server import ContractServer, Seen, error_reply
from support.in_process import cpu_settings, serving
from v1t_client import Client, InvalidRequest, NotFound
from v1t_client.insilico.catalogue import EXPERIMENTS

FOLDER = Path(__file__).parent / "older"
EXCHANGES: list[dict[str, Any]] = json.loads((FOLDER / "exchanges.json").read_text())
CHANGES = {"request_id", "message", "hint", "got", "expected"}  # words, and what is new each time


def name(exchange: dict[str, Any]) -> str:
    return f"{exchange['method']} {exchange['target']} {exchange['status']}"


def array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def assert_holds(new: Any, old: Any, where: str = "reply") -> None:
    """Whatever an older reply says, a new one says as well; it may say more."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert key in new, f"{where}.{key} is gone"
            if key not in CHANGES:
                assert_holds(new[key], value, f"{where}.{key}")
    elif isinstance(old, list) and key_of(where) not in ("assumed", "notes"):
        assert len(new) == len(old), where
        for i, (one, other) in enumerate(zip(new, old, strict=True)):
            assert_holds(one, other, f"{where}[{i}]")
    elif isinstance(old, float):
        assert new == pytest.approx(old, rel=1e-5), where
    elif isinstance(old, list):
        assert len(new) >= len(old), where
    else:
        assert new == old, where


def key_of(where: str) -> str:
    return where.rpartition(".")[2]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=name)
async def test_this_server_answers_an_older_client(exchange: dict[str, Any]) -> None:
    async with serving(cpu_settings(FOLDER / "bundle")) as client:
        reply = await client.request(
            exchange["method"],
            exchange["target"],
            headers=exchange["headers"],
            content=base64.b64decode(exchange["body"]),
        )
    assert reply.status_code == exchange["status"], reply.text
    before, old = exchange["reply_headers"], base64.b64decode(exchange["reply"])
    assert reply.headers["content-type"].partition(";")[0] == before["content-type"].partition(";")[0]
    if before["content-type"] == "application/x-npy":
        np.testing.assert_allclose(array(reply.content), array(old), rtol=1e-5, atol=1e-6)
        assert_holds(json.loads(reply.headers["v1t-reply"]), json.loads(before["v1t-reply"]))
    elif before["content-type"].startswith("application/json"):
        assert_holds(reply.json(), json.loads(old))


def parts_of(content_type: str, body: bytes) -> dict[str, list[str]]:
    """Field -> its contents; those of images as text too."""
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    found: dict[str, list[str]] = {}
    for part in message.get_payload():
        content = part.get_payload(decode=True)
        found.setdefault(str(part.get_param("name", header="content-disposition")), []).append(content.hex())
    return found


def older_server(request: httpx.Request) -> httpx.Response:
    """Answers what the older client asked; an older server refuses fields that it does not know."""
    body = request.read()
    target = request.url.raw_path.decode().replace("%401", "")  # it also took NAME@VERSION
    for exchange in EXCHANGES:
        if (request.method, target) != (exchange["method"], exchange["target"]):
            continue
        if body:
            sent = parts_of(request.headers["content-type"], body)
            known = parts_of(exchange["headers"]["content-type"], base64.b64decode(exchange["body"]))
            if sent != known:
                continue
        return httpx.Response(
            exchange["status"], headers=exchange["reply_headers"], content=base64.b64decode(exchange["reply"])
        )
    raise AssertionError(f"the older client sent no such request: {request.method} {request.url} {body[:500]!r}")


def recorded(target: str, number: int = 0) -> tuple[dict[str, list[str]], np.ndarray]:
    """The fields and the answer of a recorded prediction that succeeded."""
    found = [exchange for exchange in EXCHANGES if (exchange["target"], exchange["status"]) == (target, 200)][number]
    fields = parts_of(found["headers"]["content-type"], base64.b64decode(found["body"]))
    return fields, array(base64.b64decode(found["reply"]))


def test_this_client_sends_what_an_older_one_did_and_reads_the_replies_of_an_older_server() -> None:
    first, responses = recorded("/predict", 0)
    image = array(bytes.fromhex(first["image"][0]))
    behavior = {
        key: np.array(json.loads(bytes.fromhex(first[key][0])))
        for key in ("pupil_dilation", "pupil_dilation_derivative", "running_speed", "pupil_center")
    }
    with Client("http://older", transport=httpx.MockTransport(older_server), retries=0) as client:
        assert client.ready()
        assert [mouse.mouse_id for mouse in client.mice()] == ["A", "B"]
        mouse = client.mouse("A")
        assert mouse.image_shape == image.shape[1:]
        assert len(mouse.bundle.hash) == 64
        ids = client.neurons("A").neuron_ids
        np.testing.assert_array_equal(client.neurons("A", limit=3, offset=1).neuron_ids, ids[1:4])

        prediction = client.predict("A", image, **behavior)
        np.testing.assert_array_equal(prediction.responses, responses)
        np.testing.assert_array_equal(prediction.neuron_ids, ids)
        assert prediction.model.hash == mouse.bundle.hash
        assert prediction.notes == ()

        assert client.predict("A", image[0], running_speed=3.0).assumed
        both = recorded("/predict", 2)[1]
        some = client.predict("A", image, neuron_ids=ids[[2, 0]], units="raw", spread=True, **behavior)
        np.testing.assert_array_equal([some.responses, some.spread], both)
        np.testing.assert_array_equal(some.neuron_ids, ids[[2, 0]])

        with pytest.raises(NotFound, match="exported without gradients"):
            client.gradient("A", image[0], weights=np.eye(len(ids))[1])
        with pytest.raises(NotFound, match="no attention"):
            client.attention("A", image[0])
        with pytest.raises(NotFound, match="no such mouse"):
            client.predict("NOBODY", image[0])
        with pytest.raises(InvalidRequest, match="another size"):
            client.predict("A", image[0][:, :3])


class WithoutKindsOfNoise(ContractServer):
    """Servers of 25 November 2026 sum responses to white noise, and refuse the field that names another kind."""

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        if urlsplit(target).path != "/receptive_fields":
            return super().answer(method, target, headers, body)
        self.seen.append(Seen(method, target, {}, {}, form=json.loads(body)))
        if "noise" in json.loads(body):
            return error_reply(422, "invalid_input", "unknown field noise", "noise", None, "See /docs.json.")
        return error_reply(422, "invalid_input", "white noise was asked for")


def test_receptive_fields_do_not_need_a_server_that_knows_the_kind_of_noise() -> None:
    class Other:
        """A predictor that is no `Client`, for which the noise is summed up here."""

        def __init__(self, client: Client) -> None:
            self.predict, self.mouse, self.neurons = client.predict, client.mouse, client.neurons

    server = WithoutKindsOfNoise()
    kind = EXPERIMENTS["rf"]
    with Client(transport=server.transport(), retries=0) as client:
        orthogonal = kind(mouse="A", n_images=200, noise="orthogonal", neuron_ids=tuple(server.neuron_ids["A"][:2]))
        xarray.testing.assert_equal(orthogonal.run(client).dataset, orthogonal.run(Other(client)).dataset)
        with pytest.raises(InvalidRequest, match="white noise was asked for"):
            kind(mouse="A", n_images=200, noise="white").run(client)
    assert any("noise" in seen.form for seen in server.seen)
