"""Which routing keys a binding takes: words parted by dots, `*` for one word, `#` for any number of them."""


def matches(kind: str, pattern: str, key: str) -> bool:
    """Whether a binding of an exchange of this kind takes a message with this routing key."""
    if kind == "fanout":
        return True
    if kind == "direct":
        return pattern == key
    return _match_words(pattern.split("."), key.split("."))


def _match_words(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_match_words(pattern[1:], words[count:]) for count in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _match_words(pattern[1:], words[1:])
