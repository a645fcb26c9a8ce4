"""How much memory one side of an attempt of secure aggregation needs, each in a process of its own."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

from ...common.system.content import Content
from .peak_memory import peak_bytes
from .secagg_attempt import BenchCohort, BenchSite, Clock, play


def client_peak_bytes(cohort: BenchCohort) -> int:
    """The peak memory of the first site, in a process of its own, over one attempt that this process plays for it."""
    measured, *others = cohort.parameters.names
    sites = {name: BenchSite(cohort, name) for name in others}
    clock = Clock()
    with _fresh_process(_answer_messages, cohort) as connection:

        def answer(site: str, exchange: str, message: Content) -> bytes:
            if site != measured:
                return sites[site].answer(exchange, message, clock)
            connection.send((exchange, message))
            return connection.recv_bytes()

        play(cohort, answer, clock)
        connection.send(None)
        return int(connection.recv())


def server_peak_bytes(cohort: BenchCohort) -> int:
    """The peak memory of the server, in a process of its own, over one attempt whose sites this process plays."""
    sites = {name: BenchSite(cohort, name) for name in cohort.parameters.names}
    clock = Clock()
    with _fresh_process(_play_attempt, cohort) as connection:
        while (asked := connection.recv()) is not None:
            site, exchange, message = asked
            connection.send_bytes(sites[site].answer(exchange, message, clock))
        return int(connection.recv())


@contextmanager
def _fresh_process(role: Callable[[BenchCohort, Connection], None], cohort: BenchCohort) -> Iterator[Connection]:
    # Spawned: a forked process would start from this one's memory.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # A copy has the fields and not the keys made of them, which do not travel.
    process = context.Process(target=role, args=(replace(cohort), there), daemon=True)
    process.start()
    there.close()  # so that reading ends in an error, and not never, if the other side dies
    try:
        with here:
            yield here
    finally:
        process.join()


def _answer_messages(cohort: BenchCohort, connection: Connection) -> None:
    site, clock = BenchSite(cohort, cohort.parameters.names[0]), Clock()
    while (asked := connection.recv()) is not None:
        exchange, message = asked
        connection.send_bytes(site.answer(exchange, message, clock))
    connection.send(peak_bytes())


def _play_attempt(cohort: BenchCohort, connection: Connection) -> None:
    def answer(site: str, exchange: str, message: Content) -> bytes:
        connection.send((site, exchange, message))
        return connection.recv_bytes()

    play(cohort, answer, Clock())
    connection.send(None)
    connection.send(peak_bytes())
