"""The command line, called in this process."""

import json

from musicldm.cli import main


def succeeds(capsys, *arguments) -> list[dict]:
    """The records that a call prints with --json."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def fails(capsys, *arguments) -> str:
    """The only line on stderr."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("musicldm: error: ")
    assert err.count("\n") == 1
    return err
