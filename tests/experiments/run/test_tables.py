"""Tables on the screen and as Markdown."""

from experiments.run.tables import markdown, show


def lines_of(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_table_is_as_wide_as_it_needs_and_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    numbers = " ".join(["12.5"] * 20)
    show(["name", "numbers"], [["one", numbers], ["two", "–"]], words=["name"], title="All of them")
    title, headings, _, first, second = lines_of(capsys)
    assert (title, headings.split()) == ("All of them", ["name", "numbers"])
    assert first == f" one   {numbers}"
    assert second.endswith("–")
    assert len(second) == len(first)


def test_long_headings_and_words_are_folded_and_numbers_are_not(capsys):
    words = "word " * 12
    show(["who", "each block when it was done, %", "a\nb"], [[words, "1.0 2.0 3.0", "4"]], words=["who"])
    lines = lines_of(capsys)
    assert sum("word" in line for line in lines) == 2
    assert any("1.0 2.0 3.0" in line for line in lines)
    assert max(map(len, lines)) < 70


def test_markdown_has_the_same_rows():
    assert markdown(["a\nb", "c"], [["1", "2"], ["3", "–"]]).splitlines() == [
        "| a, b | c |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 | – |",
    ]
