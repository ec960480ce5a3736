"""Steerings go to the hub and come back, through huggingface-hub itself, to a stand-in that speaks its protocol."""

import huggingface_hub
import numpy as np
import pytest
from hub_stand_in import TOKEN, Hub
from huggingface_hub import constants

from lineas import Steering
from lineas.maps import card
from lineas.maps.card import CARD, CONFIG, GRID, TENSORS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The client reads its environment once, at import, so that its constants are set instead."""
    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # a protocol of its own, in Rust; the hub accepts both
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if hasattr(huggingface_hub, "close_session"):  # another test may have opened one that is offline
            huggingface_hub.close_session()
        yield hub


@pytest.fixture
def steering():
    info, history = {"model": "org/base", "seed": 3}, {"loss": [1.0]}
    return Steering({"model.norm": ([1.5, 1, 1], [0, 0, 2])}, info=info, history=history)


def assert_same(a: Steering, b: Steering):
    assert (a.sites, a.info, a.history) == (b.sites, b.info, b.history)
    assert all(np.array_equal(a.weight(n), b.weight(n)) and np.array_equal(a.bias(n), b.bias(n)) for n in a.sites)


def test_a_steering_goes_to_the_hub_and_comes_back(hub, steering):
    address = steering.push_to_hub("me/maps", token=TOKEN, metrics={"perplexity": 57.5})
    oid = hub.repositories["me/maps"]["commits"][-1][0]
    assert address == f"{hub.address}/me/maps/commit/{oid}"
    assert set(hub.files("me/maps")) == {".gitattributes", CARD, CONFIG, TENSORS}
    assert b"57.5" in hub.files("me/maps")[CARD]
    again = Steering.from_pretrained("me/maps")
    assert again.info.pop("metrics") == {"perplexity": 57.5}
    assert_same(again, steering)
    downloads = [call for call in hub.calls if call.startswith("GET") and "/resolve/" in call]
    assert sorted(call.rpartition("/")[2] for call in downloads) == [TENSORS, CONFIG], "and nothing else is downloaded"


def test_a_grid_goes_to_the_hub_and_is_not_downloaded_with_the_maps(hub, steering):
    image = pytest.importorskip("PIL.Image")
    steering.push_to_hub("me/maps", token=TOKEN, grid=image.new("RGB", (8, 4), "red"))
    assert set(hub.files("me/maps")) == {".gitattributes", CARD, CONFIG, TENSORS, GRID}
    assert hub.files("me/maps")[GRID].startswith(b"\x89PNG")
    assert f"]({GRID})".encode() in hub.files("me/maps")[CARD]
    assert_same(Steering.from_pretrained("me/maps"), steering)
    assert not [call for call in hub.calls if call.startswith("GET") and GRID in call]


def test_the_uploaded_card_names_the_base_model_that_the_user_says(hub, steering):
    steering.info["model"] = "tiny"
    steering.push_to_hub("me/maps", token=TOKEN)
    assert b"base_model" not in hub.files("me/maps")[CARD]
    steering.push_to_hub("me/maps", token=TOKEN, base_model="org/tiny")
    assert b'base_model: "org/tiny"' in hub.files("me/maps")[CARD]


def test_a_second_push_is_a_second_commit_and_a_revision_reads_the_first(hub, steering):
    first = steering.push_to_hub("me/maps", token=TOKEN).rpartition("/")[2]
    other = steering.scaled(2)
    other.push_to_hub("me/maps", token=TOKEN)
    assert_same(Steering.from_pretrained("me/maps"), other)
    assert_same(Steering.from_pretrained("me/maps", revision=first), steering)
    with pytest.raises(FileNotFoundError, match="nothing of that name on the hub: "):
        Steering.from_pretrained("me/maps", revision="0" * 40)


def test_a_private_repository_is_read_with_a_token_only(hub, steering):
    steering.push_to_hub("me/secret", private=True, token=TOKEN)
    assert hub.repositories["me/secret"]["private"]
    with pytest.raises(FileNotFoundError, match="no folder me/secret, and nothing of that name on the hub"):
        Steering.from_pretrained("me/secret")
    assert_same(Steering.from_pretrained("me/secret", token=TOKEN), steering)


def test_without_the_right_to_write_nothing_is_uploaded(hub, steering):
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="401"):
        steering.push_to_hub("me/maps", token="hf_wrong")
    assert hub.repositories == {}


def test_a_card_that_somebody_made_their_own_stays(hub, steering):
    steering.push_to_hub("me/maps", token=TOKEN)
    steering.push_to_hub("me/maps", token=TOKEN, metrics={"sentiment": 0.3})
    assert b"0.3" in hub.files("me/maps")[CARD], "ours is replaced"
    hub.commit("me/maps", {CARD: b"# Mine\n"})
    steering.scaled(2).push_to_hub("me/maps", token=TOKEN)
    assert hub.files("me/maps")[CARD] == b"# Mine\n"
    assert Steering.from_pretrained("me/maps").weight("model.norm")[0] == 2


def test_what_is_too_large_is_not_even_downloaded(hub, steering, monkeypatch):
    steering.push_to_hub("me/maps", token=TOKEN)
    monkeypatch.setattr("lineas.maps.hub.TENSORS_LIMIT", 50)
    with pytest.raises(ValueError, match=r"me/maps: expected a steering\.safetensors of at most 50 bytes, got \d+"):
        Steering.from_pretrained("me/maps")
    assert not any("/resolve/" in call and call.startswith("GET") and TENSORS in call for call in hub.calls)


def test_a_repository_that_is_not_there_or_holds_no_steering_is_named(hub, steering):
    with pytest.raises(FileNotFoundError, match="no folder me/none, and nothing of that name on the hub"):
        Steering.from_pretrained("me/none")
    hub.repositories["me/model"] = {"private": False, "commits": []}
    hub.commit("me/model", {"model.safetensors": b"", "config.json": b"{}"})
    with pytest.raises((FileNotFoundError, ValueError), match=r"steering_config\.json|me/model"):
        Steering.from_pretrained("me/model")
    for name in ("../../no-such-folder", "me/maps/../x", "a" * 200):
        with pytest.raises(FileNotFoundError, match="no folder"):
            Steering.from_pretrained(name)


def test_what_was_downloaded_once_is_read_without_a_network(hub, steering, monkeypatch):
    steering.push_to_hub("me/maps", token=TOKEN)
    Steering.from_pretrained("me/maps")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if hasattr(huggingface_hub, "close_session"):
        huggingface_hub.close_session()
    before = len(hub.calls)
    assert_same(Steering.from_pretrained("me/maps"), steering)
    assert len(hub.calls) == before


def test_the_hub_reads_the_cards_front_matter(steering):
    from huggingface_hub import ModelCard

    text = card.text_of(steering, steering.info, {})
    assert card.MARK in text
    data = ModelCard(text).data
    assert data.library_name == "lineas"
    assert data.base_model == "org/base"
    assert "activation-steering" in data.tags
