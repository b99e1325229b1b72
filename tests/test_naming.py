from dlsr.naming import distinct


def numbered(name: str, number: int) -> str:
    return f"{name}-{number}"


def test_names_that_differ_stay_as_they_are():
    assert distinct(["b", "a"], numbered) == ["b", "a"]


def test_a_number_tells_names_apart_also_from_names_that_have_one():
    assert distinct(["a", "a-2", "a", "a", "a-2"], numbered) == ["a", "a-2", "a-3", "a-4", "a-2-2"]
