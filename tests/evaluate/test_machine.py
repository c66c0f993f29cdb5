"""Law: a score says what it was measured on."""

from __future__ import annotations

import torch

import diptych
from diptych.evaluate.machine import describe_machine


def test_the_machine_is_named() -> None:
    machine = describe_machine()
    assert machine["torch"] == torch.__version__
    assert machine["diptych"] == diptych.__version__
    assert int(machine["cores"]) >= 1
    assert all(machine.values())
