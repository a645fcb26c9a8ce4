"""The simulation's network: Flower's own messages, apps and errors, in one process."""

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from grandrounds.deploy.simulation.local_grid import RUN_ID, SERVER_NODE, LocalGrid, local_context

SITES = ("north", "south", "west")


def echo_app(seen: list[tuple[str, int, str]]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        seen.append((site, context.node_id, str(message.content.config_records["r"]["text"])))
        return Message(RecordDict({"r": ConfigRecord({"text": f"{site} heard you"})}), reply_to=message)

    return app


def message(node: int, text: str = "hello") -> Message:
    return Message(RecordDict({"r": ConfigRecord({"text": text})}), node, MessageType.TRAIN)


def grid_of(seen: list[tuple[str, int, str]], lost: tuple[str, ...] = ()) -> LocalGrid:
    return LocalGrid(dict.fromkeys(SITES, echo_app(seen)), lambda site, message: site in lost)


def text_of(reply: Message) -> str:
    return str(reply.content.config_records["r"]["text"])


def test_it_is_a_flower_grid_with_a_node_for_each_site() -> None:
    grid = grid_of([])
    assert isinstance(grid, Grid)
    assert set(grid.nodes) == set(SITES)
    assert sorted(grid.get_node_ids()) == sorted(grid.nodes.values())
    assert SERVER_NODE not in grid.nodes.values()
    assert grid.run.run_id == RUN_ID


def test_each_message_reaches_its_node_and_its_reply_names_it() -> None:
    seen: list[tuple[str, int, str]] = []
    grid = grid_of(seen)
    identifiers = list(grid.push_messages([message(grid.nodes[site], site) for site in reversed(SITES)]))
    assert len(set(identifiers)) == 3
    assert seen == [], "a node sees its message when the replies are asked for"
    replies = list(grid.pull_messages(identifiers))
    assert seen == [(site, grid.nodes[site], site) for site in reversed(SITES)]
    assert [text_of(reply) for reply in replies] == [f"{site} heard you" for site in reversed(SITES)]
    assert [reply.metadata.reply_to_message_id for reply in replies] == identifiers
    assert [reply.metadata.src_node_id for reply in replies] == [grid.nodes[site] for site in reversed(SITES)]
    assert {reply.metadata.dst_node_id for reply in replies} == {SERVER_NODE}


def test_a_message_is_delivered_once_and_only_what_was_sent_is() -> None:
    seen: list[tuple[str, int, str]] = []
    grid = grid_of(seen)
    identifiers = list(grid.push_messages([message(grid.nodes["north"])]))
    assert len(list(grid.pull_messages(identifiers))) == 1
    assert list(grid.pull_messages(identifiers)) == []
    assert list(grid.pull_messages(["message-99"])) == []
    assert len(seen) == 1


def test_a_reply_is_made_as_it_is_asked_for_and_not_before() -> None:
    seen: list[tuple[str, int, str]] = []
    grid = grid_of(seen)
    replies = iter(grid.send_and_receive([message(grid.nodes[site]) for site in SITES]))
    assert text_of(next(replies)) == "north heard you"
    assert [site for site, _, _ in seen] == ["north"]


def test_a_lost_node_s_reply_is_the_error_that_flower_gives_for_one() -> None:
    seen: list[tuple[str, int, str]] = []
    grid = grid_of(seen, lost=("south",))
    replies = list(grid.send_and_receive([message(grid.nodes[site]) for site in SITES]))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.NODE_UNAVAILABLE
    assert not replies[1].has_content()
    assert [site for site, _, _ in seen] == ["north", "west"]


def test_the_network_is_asked_about_the_site_and_the_message_itself() -> None:
    asked: list[tuple[str, str]] = []

    def is_lost(site: str, sent: Message) -> bool:
        asked.append((site, text_of(sent)))
        return False

    grid = LocalGrid(dict.fromkeys(SITES, echo_app([])), is_lost)
    list(grid.send_and_receive([message(grid.nodes["west"], "how are you")]))
    assert asked == [("west", "how are you")]


def test_a_site_keeps_its_context_from_message_to_message() -> None:
    app = ClientApp()

    @app.train()
    def count(message: Message, context: Context) -> Message:
        before = context.state.config_records.get("count", ConfigRecord({"n": 0}))["n"]
        context.state["count"] = ConfigRecord({"n": int(str(before)) + 1})
        return Message(RecordDict({"r": context.state.config_records["count"]}), reply_to=message)

    grid = LocalGrid({"north": app, "south": app}, lambda site, sent: False)
    for expected in (1, 2):
        (reply,) = grid.send_and_receive([message(grid.nodes["north"])])
        assert reply.content.config_records["r"]["n"] == expected
    (reply,) = grid.send_and_receive([message(grid.nodes["south"])])
    assert reply.content.config_records["r"]["n"] == 1


def test_messages_and_the_run_are_made_as_flower_asks() -> None:
    grid = grid_of([])
    content = RecordDict({"r": ConfigRecord({"text": "hello"})})
    made = grid.create_message(content, MessageType.TRAIN, grid.nodes["north"], group_id="7", ttl=30.0)
    (reply,) = grid.send_and_receive([made], timeout=1.0)
    assert text_of(reply) == "north heard you"
    assert (made.metadata.group_id, made.metadata.ttl) == ("7", 30.0)
    grid.set_run(Run.create_empty(9))
    assert grid.run.run_id == 9


@pytest.mark.parametrize("site", SITES)
def test_a_context_names_its_node_and_site(site: str) -> None:
    context = local_context(7, site)
    assert (context.node_id, context.run_id, context.node_config["site"]) == (7, RUN_ID, site)
