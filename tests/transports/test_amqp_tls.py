"""TLS to a real broker: who is trusted, who is not and why, and being known by one's certificate."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from saga_amqp.errors import AuthenticationError, ConnectFailedError
from saga_amqp.testing.traffic import Inbox, Outbox, acknowledge, message_to, new_queue
from saga_amqp.transports.amqp import AmqpTransport
from tests.ports import free_ports
from tests.servers import RabbitMQ
from tests.transports.test_amqp import assert_nothing_of_aiormq
from tests.transports.test_amqp_opening import QUOTED, assert_no_password, control_threads, refusal

USER = "tls-client"
ALL = '<<".*">>'
MECHANISMS = "ok = application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN'{}])."
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Brokers:
    """Ports of one broker, each with another certificate, and the files of an authority and of clients."""

    def __init__(self, rabbitmq: RabbitMQ, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.file("ca.pem"))
        trustme.CA().cert_pem.write_to_path(self.file("other-ca.pem"))
        for user in (USER, "nobody"):
            self.write(user, self.authority.issue_cert("client.invalid", common_name=user))
        self.write("stranger", trustme.CA().issue_cert("client.invalid", common_name=USER))
        alone = trustme.CA()
        certificates = {
            "good": self.authority.issue_cert("localhost"),
            "elsewhere": self.authority.issue_cert("elsewhere.invalid"),
            "expired": self.authority.issue_cert(
                "localhost", not_before=YESTERDAY - timedelta(days=1), not_after=YESTERDAY
            ),
            "self-signed": None,
            "wants ours": self.authority.issue_cert("localhost"),
        }
        self.ports = dict(zip(certificates, free_ports(len(certificates)), strict=True))
        listeners: list[str] = []
        for name, certificate in certificates.items():
            if certificate is not None:
                self.write(name, certificate)
            else:
                alone.cert_pem.write_to_path(self.file("self-signed.pem"))
                alone.private_key_pem.write_to_path(self.file("self-signed.key"))
            wants = "true" if name == "wants ours" else "false"
            files = {"cacertfile": "ca.pem", "certfile": f"{name}.pem", "keyfile": f"{name}.key"}
            options = ", ".join(f'{{{option}, "{self.file(file)}"}}' for option, file in files.items())
            listeners.append(
                f'ok = rabbit_networking:start_ssl_listener({{"127.0.0.1", {self.ports[name]}, inet}}, '
                f"[{options}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, {wants}}}], 2)"
            )
        rabbitmq.enable_plugin("rabbitmq_auth_mechanism_ssl")
        user = f'<<"{USER}">>'
        known = [
            MECHANISMS.format(", 'EXTERNAL'").rstrip("."),
            "ok = application:set_env(rabbit, ssl_options, [{verify, verify_peer}])",
            "ok = application:set_env(rabbit, ssl_cert_login_from, common_name)",
            f'rabbit_auth_backend_internal:add_user({user}, <<"unused">>, <<"tests">>)',
            f'rabbit_auth_backend_internal:set_permissions({user}, <<"/">>, {", ".join([ALL] * 3)}, <<"tests">>)',
        ]
        rabbitmq.ctl("eval", ", ".join(listeners + known) + ".")

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, name: str, certificate: trustme.LeafCert) -> None:
        certificate.private_key_pem.write_to_path(self.file(f"{name}.key"))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(self.file(f"{name}.pem"), append=True)

    def url(self, broker: str, *, login: str = "guest:guest@", **settings: str) -> str:
        """Return the URL of a port; `files` of ours are given by their names."""
        query = "&".join(
            f"{name}={quote(self.file(value) if name.endswith('file') else value, safe='')}"
            for name, value in settings.items()
        )
        return f"amqps://{login}localhost:{self.ports[broker]}/?{query}"


@pytest.fixture(scope="module")
def brokers(private_node: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Brokers:
    """The private broker, which also speaks TLS, and knows people by their certificates."""
    directory = tmp_path_factory.mktemp("tls files")
    return Brokers(private_node, directory)


@pytest.fixture
def knows_no_certificates(private_node: RabbitMQ, brokers: Brokers) -> Iterator[None]:
    """For as long as the test lasts the broker lets people in by password only."""
    private_node.ctl("eval", MECHANISMS.format(""))
    yield
    private_node.ctl("eval", MECHANISMS.format(", 'EXTERNAL'"))


async def use(transport: AmqpTransport) -> None:
    """Have messages go there and back, some of them larger than what TLS takes in one piece."""
    with anyio.fail_after(30):
        async with transport:
            queue = await new_queue(transport)
            inbox, outbox = Inbox(), Outbox(transport)
            body = b"x" * 1_000_000
            async with transport.consume(queue, 10, inbox):
                await outbox.publish(message_to(queue, "0", body), message_to(queue, "1"))
                first, second = await inbox.take(2)
                assert first.body == body
                acknowledge((first, second))
            assert outbox.outcomes == {"0": None, "1": None}


@pytest.mark.uvloop
async def test_the_right_certificate_is_trusted(brokers: Brokers, caplog: pytest.LogCaptureFixture) -> None:
    await use(AmqpTransport(brokers.url("good", cafile="ca.pem")))
    context = ssl.create_default_context(cafile=brokers.file("ca.pem"))
    await use(AmqpTransport(brokers.url("good"), ssl_context=context))
    assert_nothing_of_aiormq(caplog)


@pytest.mark.uvloop
@pytest.mark.parametrize(
    ("broker", "cafile", "says"),
    [
        ("good", None, "self.signed certificate in certificate chain; trust its authority with cafile"),
        ("good", "other-ca.pem", "certificate.*; trust its authority with cafile"),
        ("elsewhere", "ca.pem", "Hostname mismatch, certificate is not valid for 'localhost'"),
        ("expired", "ca.pem", "certificate has expired"),
        ("self-signed", "ca.pem", "self.signed certificate; trust its authority with cafile"),
    ],
    ids=["authority of the system", "another authority", "another name", "expired", "self-signed"],
)
async def test_any_other_certificate_is_refused_and_why_is_said(
    brokers: Brokers, broker: str, cafile: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {} if cafile is None else {"cafile": cafile}
    error = await refusal(brokers.url(broker, login=f"guest:{QUOTED}@", **settings))
    assert type(error) is ConnectFailedError
    where = f"localhost:{brokers.ports[broker]}"
    with pytest.raises(
        ConnectFailedError, match=f"certificate of the broker at {where} is not accepted: .*{says}"
    ):
        raise error
    assert not control_threads()
    assert_nothing_of_aiormq(caplog)


async def test_a_name_is_verified_where_an_address_is_given(brokers: Brokers) -> None:
    url = brokers.url("good", cafile="ca.pem").replace("localhost", "127.0.0.1")
    error = await refusal(url)
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in str(error)


async def test_a_port_that_speaks_no_tls_and_tls_to_whom_it_is_not_spoken(
    brokers: Brokers, private_node: RabbitMQ
) -> None:
    error = await refusal(private_node.url().replace("amqp://guest:guest", f"amqps://guest:{QUOTED}"))
    assert f"TLS with 127.0.0.1:{private_node.port} failed: whoever listens there speaks no TLS" in str(error)
    error = await refusal(brokers.url("good", login=f"guest:{QUOTED}@").replace("amqps", "amqp"))
    assert type(error) is ConnectFailedError
    assert "it is TLS, for which the URL begins with amqps://" in str(error)


async def test_cancelled_at_any_time_nothing_is_left(brokers: Brokers) -> None:
    async def connect() -> None:
        async with AmqpTransport(brokers.url("good", cafile="ca.pem")):
            pass

    with anyio.fail_after(60):
        began = anyio.current_time()
        await connect()
        takes = anyio.current_time() - began
        for part in range(20):
            with anyio.move_on_after(takes * part / 18):
                await connect()
            assert not control_threads()


async def reason(url: str) -> ConnectFailedError:
    """Return why the broker ends a connection that it has agreed on, where the end does not overtake the reason."""
    for _ in range(10):
        error = await refusal(url)
        if "reset by peer" not in str(error):
            break
    return error


async def test_a_certificate_of_our_own_is_shown(brokers: Brokers) -> None:
    ours = {"cafile": "ca.pem", "certfile": f"{USER}.pem", "keyfile": f"{USER}.key"}
    await use(AmqpTransport(brokers.url("wants ours", **ours)))
    context = ssl.create_default_context(cafile=brokers.file("ca.pem"))
    context.load_cert_chain(brokers.file(f"{USER}.pem"), brokers.file(f"{USER}.key"))
    await use(AmqpTransport(brokers.url("wants ours"), ssl_context=context))
    error = await reason(brokers.url("wants ours", login=f"guest:{QUOTED}@", cafile="ca.pem"))
    assert "wants our certificate" in str(error)
    ours |= {"certfile": "stranger.pem", "keyfile": "stranger.key"}
    error = await reason(brokers.url("wants ours", login=f"guest:{QUOTED}@", **ours))
    assert "does not trust the authority of our certificate" in str(error)


@pytest.mark.uvloop
async def test_a_user_is_known_by_the_certificate(brokers: Brokers, private_node: RabbitMQ) -> None:
    ours = {"cafile": "ca.pem", "certfile": f"{USER}.pem", "keyfile": f"{USER}.key", "auth": "external"}
    await use(AmqpTransport(brokers.url("good", login="", **ours)))
    context = ssl.create_default_context(cafile=brokers.file("ca.pem"))
    context.load_cert_chain(brokers.file(f"{USER}.pem"), brokers.file(f"{USER}.key"))
    await use(AmqpTransport(brokers.url("good", login="", auth="EXTERNAL"), ssl_context=context))


async def test_operators_see_who_it_is(brokers: Brokers, private_node: RabbitMQ) -> None:
    ours = {"cafile": "ca.pem", "certfile": f"{USER}.pem", "keyfile": f"{USER}.key", "auth": "external"}
    with anyio.fail_after(30):
        async with AmqpTransport(brokers.url("good", login="", name="shop", **ours)):
            users = await anyio.to_thread.run_sync(
                private_node.ctl, "list_connections", "user", "client_properties"
            )
            assert any(line.startswith(USER) and '"shop"' in line for line in users.splitlines())


async def test_a_certificate_of_nobody_is_refused(brokers: Brokers) -> None:
    nobody = {"cafile": "ca.pem", "certfile": "nobody.pem", "keyfile": "nobody.key", "auth": "external"}
    error = await refusal(brokers.url("good", **nobody))
    assert type(error) is AuthenticationError
    assert "refused the user of our certificate" in str(error)
    context = ssl.create_default_context(cafile=brokers.file("ca.pem"))
    with pytest.raises(AuthenticationError, match="refused the user of our certificate"):
        await use(AmqpTransport(brokers.url("good", auth="external"), ssl_context=context))


@pytest.mark.usefixtures("knows_no_certificates")
async def test_a_broker_that_knows_nobody_by_certificate_says_so(
    brokers: Brokers, caplog: pytest.LogCaptureFixture
) -> None:
    ours = {"cafile": "ca.pem", "certfile": f"{USER}.pem", "keyfile": f"{USER}.key", "auth": "external"}
    error = await refusal(brokers.url("good", login=f"guest:{QUOTED}@", **ours))
    assert type(error) is AuthenticationError
    assert "by certificate: it offers" in str(error)
    assert "PLAIN" in str(error)
    assert "rabbitmq_auth_mechanism_ssl" in str(error)
    assert_nothing_of_aiormq(caplog)


async def test_files_that_cannot_be_used_are_named(brokers: Brokers) -> None:
    write_useless_files(brokers)
    certificate = {"certfile": f"{USER}.pem"}
    for settings, says in (
        ({"cafile": "missing.pem"}, "cafile .*missing.pem' cannot be used: No such file"),
        ({"cafile": "nonsense.pem"}, "cafile .*nonsense.pem' cannot be used"),
        ({"certfile": "missing.pem"}, "certfile .*missing.pem' cannot be used: No such file"),
        (certificate | {"keyfile": "stranger.key"}, "certfile .* and keyfile .*stranger.key' cannot be used"),
        (certificate | {"keyfile": "encrypted.key"}, "is encrypted: give an ssl_context"),
    ):
        error = await refusal(brokers.url("good", login=f"guest:{QUOTED}@", **settings))
        with pytest.raises(ConnectFailedError, match=says):
            raise error


def write_useless_files(brokers: Brokers) -> None:
    (brokers.directory / "nonsense.pem").write_text("nonsense")
    key = serialization.load_pem_private_key((brokers.directory / f"{USER}.key").read_bytes(), None)
    (brokers.directory / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"5ecret"),
        )
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqps://u:5ecret@h/?no_verify_ssl=1", "cannot say no_verify_ssl here: give an ssl_context"),
        ("amqps://u:5ecret@h/?capath=x", "cannot say capath"),
        ("amqps://u:5ecret@h/?cadata=!", "cannot say cadata"),
        ("amqps://u:5ecret@h/?auth=5ecret", "auth=plain, which is the default, or auth=external"),
        ("amqps://u:5ecret@h/?auth=external", "no certificate of ours was given"),
        ("amqp://u:5ecret@h/?auth=external", "auth=external, which needs TLS"),
        ("amqp://u:5ecret@h/?cafile=x", "cafile, which is for TLS: write amqps://"),
        ("amqps://u:5ecret@h/?keyfile=x", "a keyfile, and no certfile"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(url: str, says: str) -> None:
    with pytest.raises(ConnectFailedError, match=says) as caught:
        AmqpTransport(url)
    assert_no_password(caught.value)


def test_a_context_and_files_are_too_much() -> None:
    with pytest.raises(ConnectFailedError, match="one of the two"):
        AmqpTransport("amqps://h/?cafile=x", ssl_context=ssl.create_default_context())
    with pytest.raises(ConnectFailedError, match="URL of b:5672 is amqp"):
        AmqpTransport(["amqps://a/", "amqp://b/"], ssl_context=ssl.create_default_context())
