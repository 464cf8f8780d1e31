"""The connections over time, as an SVG drawing."""

from __future__ import annotations

import errno
import os
import re

from hello_listen.report.facts import Report

_SVG = re.compile(rb"(\s|<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE svg.*?>)*<svg[\s>]", re.DOTALL)


def checkTarget(path: str) -> None:
    """
    Check that a path is free or leads to a drawing: in C{--svg connections.jsonl*}, it is a log.

    @raise OSError: the path leads to something else.
    """
    if not os.path.lexists(path):
        return
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if _SVG.match(file.read(1000)):
                return
    raise FileExistsError(errno.EEXIST, "exists, and is not an SVG drawing", path)


def writeDrawing(report: Report, path: str) -> None:
    """
    Write the drawing.

    @raise OSError: it cannot be written. An incomplete drawing is removed.
    """
    with open(path, "w", encoding="ascii") as file:
        try:
            file.write(draw(report))
            file.flush()
        except OSError:
            os.unlink(path)
            raise


def draw(report: Report) -> str:
    """Return a drawing of 800 by 200, with a margin for the labels."""
    bars, unit = report.bars, report.unit
    most = max([bar.connections for bar in bars], default=0)
    slots = (bars[-1].start - bars[0].start) / unit.length + 1 if bars else 1
    elements = [f'<text y="-6">connections by {unit.name}, UTC: {most:,} at most</text>']
    for bar in bars:
        x = 800 * ((bar.start - bars[0].start) / unit.length) / slots
        height = 200 * bar.connections / most
        elements.append(
            f'<rect x="{x:.2f}" y="{200 - height:.2f}" width="{max(640 / slots, 0.5):.2f}" '
            f'height="{height:.2f}"><title>{unit.label(bar.start)}: '
            f"{bar.connections:,}</title></rect>"
        )
    for bar, x, anchor in zip(bars[:1] + bars[1:][-1:], (0, 800), ("start", "end"), strict=False):
        elements.append(
            f'<text x="{x}" y="216" text-anchor="{anchor}">{unit.label(bar.start)}</text>'
        )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -24 816 248" font-size="12">'
    return "\n".join([head, *elements, "</svg>\n"])
