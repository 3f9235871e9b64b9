"""What an error's message says of many names."""

from pipeline.errors import few, listed


def test_a_sentence_names_the_first_and_counts_the_others() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert few("abc", at_most=2) == "a, b and 1 more"
    assert few([]) == ""


def test_a_list_has_a_line_each_and_counts_the_others() -> None:
    assert listed(["a: no", "b: neither"]) == "  a: no\n  b: neither"
    assert listed(map(str, range(4)), at_most=2) == "  0\n  1\n  ... and 2 more"
    assert listed([]) == ""
