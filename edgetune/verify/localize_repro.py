"""The block that broke as two small files and the input that shows it."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import numpy as np

from edgetune.core.files import write_bytes_atomic
from edgetune.graph.blocks import Block
from edgetune.graph.pieces import constant_piece, with_units
from edgetune.graph.severing import find_blocks, single_block
from edgetune.verify.localize_evidence import WorstImage
from edgetune.verify.localize_graphs import Sides

REFERENCE_NAME, CANDIDATE_NAME, INPUT_NAME = "reference.onnx", "candidate.onnx", "input.npz"


def write_repro(sides: Sides, block: Block, worst: WorstImage, folder: Path, precision: str) -> str:
    """Writes the block of both sides with the reference's input of the worst image; returns the command to run.

    Where PyTorch is the reference, its piece is a file that gives what PyTorch answered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    feed = dict(worst.feed)
    block = _with_all_inputs(sides, block)
    units = {name: (view.scale, view.shift) for name, view in sides.views.items()}
    candidate = with_units(single_block(sides.graph, block, sides.cuts), units)
    if sides.reference is not None:
        reference = single_block(sides.reference, block, sides.cuts)
    else:
        reference = constant_piece(candidate, worst.output)
    for name, model in ((REFERENCE_NAME, reference), (CANDIDATE_NAME, candidate)):
        write_bytes_atomic(folder / name, model.SerializeToString())
    stream = io.BytesIO()
    np.savez_compressed(stream, **{name: feed[name] for name in _input_names(candidate) if name in feed})  # type: ignore[arg-type]
    write_bytes_atomic(folder / INPUT_NAME, stream.getvalue())
    files = [str(folder / name) for name in (REFERENCE_NAME, CANDIDATE_NAME)]
    command = ["edgetune", "parity", *files, "--data", str(folder / INPUT_NAME)]
    return shlex.join([*command, "--precision", precision])


def _input_names(model: object) -> list[str]:
    return [entry.name for entry in model.graph.input]  # type: ignore[attr-defined]


def _with_all_inputs(sides: Sides, block: Block) -> Block:
    """Inputs of either side: both pieces take the same."""
    if sides.reference is None:
        return block
    (twin,) = [each for each in find_blocks(sides.reference, sides.cuts) if each.tensor == block.tensor]
    inputs = tuple(dict.fromkeys([*block.inputs, *twin.inputs]))
    return Block(block.name, block.module, block.tensor, inputs, block.nodes, block.has_product)
