"""ONNX files without the package `onnx`: what they may hold that come from a stranger, and further outputs of a graph.

The numbers of fields are those of onnx.proto, and the encoding that of Protocol Buffers.
"""

from collections.abc import Iterator, Sequence

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_TENSORS, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 12, 15
_VALUE_NAME = 1
_NODE_OPERATION, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_FILE, _TENSOR_PLACE = 13, 14
_FORBIDDEN = {b"Loop", b"If", b"Scan", b"SequenceMap", b"Multinomial", b"Bernoulli"}
_RANDOM = b"Random"

Field = tuple[int, memoryview | int]


def check_onnx(content: bytes) -> None:
    """A graph computes in a bounded time, the same each time, and from its own numbers alone.

    Raises:
        ValueError: if it holds loops, branches or functions, draws random numbers or refers to other files, which may
            lie on other machines; or if it is damaged.
    """
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_FUNCTIONS:
            raise ValueError("a graph defines functions")
        if number == _MODEL_GRAPH:
            _check_graph(_message(value))


def with_outputs(content: bytes, names: Sequence[str]) -> bytes:
    """A file whose graph also returns tensors inside it, by their names.

    A message that comes twice is merged by parsers of Protocol Buffers, so these outputs are added at the end.
    """
    added = b"".join(_written(_GRAPH_OUTPUT, _written(_VALUE_NAME, name.encode())) for name in names)
    return content + _written(_MODEL_GRAPH, added) if added else content


def _written(number: int, value: bytes) -> bytes:
    return bytes([*_as_varint(number << 3 | 2), *_as_varint(len(value)), *value])


def _as_varint(value: int) -> list[int]:
    low, rest = value & 0x7F, value >> 7
    return [low | 0x80, *_as_varint(rest)] if rest else [low]


def _check_graph(graph: memoryview) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_SPARSE:
            raise ValueError("a graph holds sparse numbers")
        if number == _GRAPH_TENSORS:
            _check_tensor(_message(value))
        if number == _GRAPH_NODE:
            _check_node(_message(value))


def _check_node(node: memoryview) -> None:
    for number, value in _fields(node):
        if number == _NODE_OPERATION:
            operation = bytes(_message(value))
            if operation in _FORBIDDEN or operation.startswith(_RANDOM):
                raise ValueError(f"a graph holds the operation {operation.decode('ascii', 'replace')}")
        if number == _NODE_ATTRIBUTE:
            for inner, content in _fields(_message(value)):
                if inner in _ATTRIBUTE_GRAPHS or inner in _ATTRIBUTE_SPARSE:
                    raise ValueError("a graph holds another graph, or sparse numbers")
                if inner in _ATTRIBUTE_TENSORS:
                    _check_tensor(_message(content))


def _check_tensor(tensor: memoryview) -> None:
    if any(number == _TENSOR_FILE or (number == _TENSOR_PLACE and value) for number, value in _fields(tensor)):
        raise ValueError("a graph refers to another file")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a graph is damaged")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message: their numbers, and whole numbers or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        # Parsers keep the lowest 32 bits of a tag.
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("a graph is damaged")
        if at + size > len(message):
            raise ValueError("a graph is damaged")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number of up to 64 bits, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            break
        value |= (message[at + i] & 0x7F) << (7 * i)
        if message[at + i] < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + i + 1
    raise ValueError("a graph is damaged")
