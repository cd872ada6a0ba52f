"""Controls without a browser: what a form hears and says."""

from __future__ import annotations

from dgemma_lab.form.boxes import Stack
from dgemma_lab.form.form import Form, button


def test_a_form_hears_its_buttons_and_says_things() -> None:
    form = Form(
        [button("run", main=True), {"name": "seed", "kind": "int", "label": "seed"}], {"seed": 3}
    )
    heard: list[str] = []
    form.on_press(heard.append)
    form._receive(form, {"type": "press", "name": "run"}, [])
    assert heard == ["run"]
    # A change that the front end still holds back comes with the press, before it is heard.
    seeds: list[object] = []
    form.on_press(lambda _: seeds.append(form.values["seed"]))
    form._receive(form, {"type": "press", "name": "run", "values": {"seed": 4}}, [])
    assert seeds == [4]
    form.say("no", alert=True)
    assert (form.message, form.alert) == ("no", True)
    assert repr(Stack(children=(form,))) == "Stack(1 parts)"
