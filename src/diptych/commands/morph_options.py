"""Options that every command with a morph takes: where its parts lie."""

from __future__ import annotations

from typing import Annotated

import typer

LanguageModel = Annotated[
    str | None, typer.Option(help="Where the base language model lies, if not where the morph says.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code from the language model's repository, if it has some.")
]
PixelDecoderName = Annotated[
    str | None, typer.Option(help="Of a VPiT morph: draw with this pixel decoder in place of its own.")
]
