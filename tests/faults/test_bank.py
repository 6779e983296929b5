"""The bank: money moves between accounts while everything is killed, and in the end not a cent is missing."""

from tests.postgres import PostgreSQL
from tests.servers import RabbitMQ

from .bank.trial import Kill, Load, try_out

SEED = 20
KILLS: dict[Kill, int] = {
    "engine": 3, "all engines": 1, "starter": 1, "broker": 1, "stop": 1, "freeze": 1,
}  # fmt: skip


def short(kills: dict[Kill, int]) -> Load:
    return Load(SEED, sagas=200, per_second=20.0, kills=kills, pauses=(0.1, 0.6), rest_deadline=60.0)


def test_no_cent_is_lost_in_sqlite_whatever_is_killed(private_rabbitmq: RabbitMQ) -> None:
    report = try_out(short(KILLS), private_rabbitmq, None)
    print("\n".join([*report.lines(), *report.strikes]))
    assert not report.findings.wrong
    assert report.kills == KILLS


def test_no_cent_is_lost_in_postgresql_whatever_is_killed(
    private_rabbitmq: RabbitMQ, private_postgres: PostgreSQL
) -> None:
    kills = KILLS | {"database": 2}
    report = try_out(short(kills), private_rabbitmq, private_postgres)
    print("\n".join([*report.lines(), *report.strikes]))
    assert not report.findings.wrong
    assert report.kills == kills
