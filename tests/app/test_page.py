"""The page through Gradio's own client, as another program would use it."""

import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from app_desks import PROMPTS, alone, desk, parts

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")
from gradio_client import Client
from gradio_client.exceptions import AppError

from lineas_app import page
from lineas_app.controls import PRICE, STRENGTH

LINES = "\n".join(PROMPTS)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        blocks, address = page.serve(desk())
        yield blocks, address
        blocks.close(verbose=False)


@pytest.fixture
def client(served):
    return Client(served[1], verbose=False)


def ask(client, *sliders, prompts=LINES, tokens=8, unit=STRENGTH):
    return client.predict(prompts, tokens, 1.0, 3, unit, *sliders, api_name="/make")


def said_by(on):
    """The words of an answer that is not the base model's."""
    return [text.split()[-1] for text in alone(on)]


def test_two_visitors_at_once_each_get_what_their_own_strength_gives_alone(served):
    wanted = {strength: said_by([("casual", strength)]) for strength in (0.5, 2.0)}
    assert wanted[0.5] != wanted[2.0]

    def visit(strength):
        own = Client(served[1], verbose=False)
        return [ask(own, strength, 0.0)[0] for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        for strength, answers in zip(wanted, pool.map(visit, wanted), strict=True):
            for html in answers:
                assert all(word in html for word in wanted[strength])
                assert f"casual: strength {strength:g}, costs" in html


def test_a_price_is_turned_into_the_strength_that_costs_it(client):
    html, figures = ask(client, 5.0, 0.0, unit=PRICE)
    assert "casual: strength 1, costs +5.0% perplexity" in html
    assert "casual: what strengths cost" in figures


@pytest.mark.parametrize(
    ("sliders", "how", "said"),
    [((1.0, 0.0), {"prompts": ""}, "prompts: expected 1 to 16, one a line, got 0"),
     ((1.0, 0.0), {"tokens": 1000}, "new tokens: expected a whole number from 1 to 256, got 1000"),
     ((1e30, 0.0), {}, "casual: expected a strength from -10 to 10"),
     ((1.0, None), {}, "plain: expected a finite number"),
     ((90.0, 0.0), {"unit": PRICE}, "casual: price: expected at most what was measured")],
)  # fmt: skip
def test_what_goes_wrong_is_said_in_a_line_without_a_traceback(client, capfd, sliders, how, said):
    with pytest.raises(AppError, match=said) as failed:
        ask(client, *sliders, **how)
    assert "Traceback" not in str(failed.value) + "".join(capfd.readouterr())


def test_a_fault_of_the_model_is_said_too(client, served, monkeypatch):
    monkeypatch.setattr("lineas_app.makers.evaluation.continuations", lambda *_, **__: {}["oops"])
    with pytest.raises(AppError, match="KeyError: 'oops'"):
        ask(client, 1.5, 0.0, prompts="a new one")


def test_it_listens_on_this_computer_only_and_shares_nothing(served):
    blocks, address = served
    assert address.startswith("http://127.0.0.1:")
    sockets = [one for server in blocks.server.servers for one in server.sockets]
    assert {one.getsockname()[0] for one in sockets} == {"127.0.0.1"}
    assert blocks.share_url is None
    assert not blocks.analytics_enabled
    assert blocks.allowed_paths == []


def test_no_file_can_be_read_through_it_or_left_in_it(served, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody's business")
    for path in (secret, "/etc/hostname", "pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served[1]}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"a" * 999 + b"\r\n--b--\r\n"
    )
    request = urllib.request.Request(
        f"{served[1]}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413


def test_folders_cannot_be_asked_for_where_the_page_may_not_open_them():
    own = page.Page(desk())
    with pytest.raises(Exception, match="from this computer only"):
        own.said(own.open)("anywhere", STRENGTH, [])


def test_an_opened_folder_gets_a_slider_and_there_is_an_end_to_it(tmp_path):
    parts()[2]["casual"].save_pretrained(tmp_path / "more")
    own, opened = page.Page(desk(may_open=True)), []
    for k in range(page.MORE):
        opened, _, *sliders = own.open(str(tmp_path / "more"), PRICE, opened)
        assert sliders[2 + k]["label"] == "more (% perplexity)"
        assert (sliders[2 + k]["value"], sliders[2 + k]["visible"]) == (0.0, True)
    with pytest.raises(ValueError, match="at most 3 more"):
        own.open(str(tmp_path / "more"), PRICE, opened)
    html, _ = own.make(LINES, 8, 1.0, 3, PRICE, opened, 0.0, 0.0, 5.0)
    assert "more: strength 1, costs" in html


def test_switching_units_leaves_sliders_where_they_stand():
    own = page.Page(desk())
    unit, casual, plain = own.switch(STRENGTH, PRICE, [], 5.0, 0.25)
    assert (unit, casual["value"], plain["value"]) == (STRENGTH, 1.0, 0.25)
    _, casual, _ = own.switch(PRICE, STRENGTH, [], 1.0, 0.25)
    assert (casual["value"], casual["maximum"]) == (5.0, 27.0)


def test_a_slider_that_was_moved_beyond_its_end_is_at_its_end_and_a_program_is_told():
    own = page.Page(desk())
    for unit, typed, ends in ((PRICE, (1e9, -3.0), (27.0, -1.0)), (STRENGTH, (-3, 5), (-1.0, 2.0))):
        given = LINES, 8, 1.0, 3, unit, []
        assert own.moved(*given, *typed)[0] == own.make(*given, *ends)[0]
        stand = [slider["value"] for slider in own.switch(unit, unit, [], *typed)[1:]]
        assert stand == [slider["value"] for slider in own.switch(unit, unit, [], *ends)[1:]]
    with pytest.raises(ValueError, match="expected at most what was measured"):
        own.make(LINES, 8, 1.0, 3, PRICE, [], 1e9, 0.0)
    for nothing in (None, float("nan"), "5"):
        with pytest.raises(ValueError, match="casual: expected a finite number"):
            own.moved(LINES, 8, 1.0, 3, PRICE, [], nothing, 0.0)


def test_an_address_that_nothing_can_listen_on_is_refused_before_any_work(served):
    port = int(served[1].rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"expected an address to listen on, got 127.0.0.1, port {port}"):
        page.serve(desk(), port=port)
    with pytest.raises(OSError, match="expected an address to listen on, got no.such.host"):
        page.check_address("no.such.host", None)


def test_without_gradio_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"the app needs gradio; install it with: pip install 'lineas\[app\]'"
    ):
        page.gradio()
