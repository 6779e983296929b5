"""The bank: money moves between accounts while everything is killed, and in the end not a cent is missing."""

from collections import Counter

from tests.postgres import PostgreSQL
from tests.servers import RabbitMQ

from .bank.trial import Kill, Load, try_out

SEED = 20
KILLS: dict[Kill, int] = {
    "engine": 3, "all engines": 1, "starter": 1, "broker": 1, "stop": 1, "freeze": 1,
}  # fmt: skip


def short(kills: dict[Kill, int], seed: int = SEED) -> Load:
    return Load(seed, sagas=200, per_second=40.0, kills=kills, pauses=(0.0, 0.4))


def test_no_cent_is_lost_in_sqlite_whatever_is_killed(private_rabbitmq: RabbitMQ) -> None:
    report = try_out(short(KILLS), private_rabbitmq, None)
    print(*report.lines(), sep="\n")
    assert not report.findings.wrong
    assert report.kills >= Counter(KILLS)


def test_no_cent_is_lost_in_postgresql_whatever_is_killed(
    private_rabbitmq: RabbitMQ, private_postgres: PostgreSQL
) -> None:
    kills = KILLS | {"engine": 2, "database": 1}
    report = try_out(short(kills), private_rabbitmq, private_postgres)
    print(*report.lines(), sep="\n")
    assert not report.findings.wrong
    assert report.kills >= Counter(kills)
