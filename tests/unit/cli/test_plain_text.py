from __future__ import annotations

from zeropull.cli.plain_text import escaped, plain


def test_lines_stay_lines_and_other_control_characters_do_not() -> None:
    assert plain("one\ntwo\r\x1b[2Jthree\x00").plain == "one\ntwo??[2Jthree?"


def test_letters_of_every_script_stay() -> None:
    assert plain("größer 模型 🙂").plain == "größer 模型 🙂"


def test_a_line_shows_which_control_characters_it_has() -> None:
    assert escaped("größer\t\x1b[31mred\x00 🙂") == "größer\t\\x1b[31mred\\x00 🙂"
