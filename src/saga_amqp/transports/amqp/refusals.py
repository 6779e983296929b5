"""Why the broker declares something differently or not at all, and what to do about it. Text in, text out."""

import re
from typing import Literal

Part = Literal["exchange", "queue", "binding"]

# RabbitMQ cuts what it says off at 255 bytes, so that long names leave no room for the values.
_DIFFERENCE = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?:queue|exchange) '.*?' in vhost '.*?': "
    r"received (?P<asked>.+) but current is (?P<found>.+)$"
)
_CUT_OFF = re.compile(r"inequivalent arg '(?P<argument>[^']+)'")
_VALUE = re.compile(r"(?:the value )?'(?P<value>.*?)'(?: of type '\w+')?$")

_PERMISSIONS = {
    "exchange": "to configure it",
    "queue": "to configure it; where it has a dead-letter queue, also to read it and to write to amq.default",
    "binding": "to write to the queue and to read from the exchange",
}


def explain(part: Part, what: str, reason: str) -> str:
    """Return what is wrong and what to do. `what` names it, `reason` is what the broker says."""
    if (cut_off := _CUT_OFF.search(reason)) is not None:
        argument, asked, found = cut_off["argument"], None, None
        if (whole := _DIFFERENCE.search(reason)) is not None:
            asked, found = _read(whole["asked"]), _read(whole["found"])
        return f"{_difference(part, what, argument, asked, found)}. The broker says: {reason}"
    return f"{what} cannot be declared as asked: {reason}{_advice(part, reason)}"


def _read(text: str) -> str:
    value = _VALUE.match(text)
    return repr(value["value"]) if value is not None else text


def _difference(part: Part, what: str, argument: str, asked: str | None, found: str | None) -> str:
    values = "" if asked is None else f": it has {found}, and {asked} was asked for"
    field = _field(part, argument, found)
    alike = f"set Config({field}) to take it as it is, " if field else ""
    empty = "when it is empty" if part == "queue" else "when nobody uses it"
    return (
        f"{what} exists with another {argument}{values}. "
        f"Nobody can change that: {alike}delete the {part} {empty}, or use another name or prefix"
    )


def _field(part: Part, argument: str, found: str | None) -> str | None:
    """Return the argument of Config with which the same would be declared, if there is one."""
    value = found if found is not None and found != "none" else None
    number = value.strip("'") if value is not None else ""
    match argument:
        case "x-queue-type" if value in (None, "'classic'", "'quorum'"):
            return f"queue_kind={value or '…'}"
        case "x-expires" if found == "none":
            return "expires=None"
        case "x-expires":
            return f"expires={int(number) / 1000:g}" if number.isdecimal() else "expires=…"
        case "x-dead-letter-routing-key" if found != "none":
            return f"dead_letter_queue={value or '…'}"
        case "x-delivery-limit" if found != "none":
            return f"delivery_limit={number or '…'}"
        case "auto_delete" if part == "exchange":
            return "expires=None" if value == "'false'" else "expires=…"
        case _:
            return None


def _advice(part: Part, reason: str) -> str:
    if reason.startswith("ACCESS_REFUSED") and "refused for user" in reason:
        return f". The user needs the permission {_PERMISSIONS[part]} (rabbitmqctl set_permissions)"
    if reason.startswith("ACCESS_REFUSED"):
        return ". The name is the broker's own: use another"
    if reason.startswith("NOT_FOUND"):
        return (
            ". Declare it with the same topology, or before; an exchange that is deleted with its last binding "
            "may have gone meanwhile"
        )
    return ""
