"""The picture: a bar for each contender's median processor time, a panel for each case, as SVG without a library."""

from html import escape

from bench.report import Line
from bench.spread import Spread

WIDTH = 720
LABEL = 140
ROW = 20
TITLE = 34
OURS = "#2563eb"
OTHERS = "#94a3b8"

_STYLE = "text{font:12px system-ui,sans-serif;fill:#0f172a}.title{font-weight:600}.small{fill:#475569}"


def svg(lines: list[Line]) -> str:
    """Draw the lines that have a cost, or failing that memory for each connection."""
    panels: dict[tuple[str, str], list[tuple[Line, Spread]]] = {}
    for line in lines:
        spread = line.kib if line.workload == "idle" else line.cpu_us
        if spread:
            panels.setdefault((line.workload, line.case), []).append((line, spread))
    parts: list[str] = []
    y = 10
    for (workload, case), panel in panels.items():
        parts.append(f'<text class="title" x="10" y="{y + 16}">{escape(f"{workload}: {case}")}</text>')
        unit = f"{'KiB' if workload == 'idle' else 'CPU µs'} per {panel[0][0].per}"
        parts.append(f'<text class="small" x="{WIDTH - 10}" y="{y + 16}" text-anchor="end">{escape(unit)}</text>')
        y += TITLE - 8
        scale = (WIDTH - LABEL - 80) / max(spread.most for _, spread in panel)
        for line, spread in panel:
            parts.append(_bar(y, line.contender, spread, scale))
            y += ROW
        y += TITLE - ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _bar(y: int, contender: str, spread: Spread, scale: float) -> str:
    middle = y + ROW / 2
    end, least, most = (LABEL + scale * value for value in (spread.median, spread.least, spread.most))
    color = OURS if contender.startswith("kraftek") else OTHERS
    return (
        f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(contender)}</text>'
        f'<rect x="{LABEL}" y="{y + 3}" width="{end - LABEL:.1f}" height="{ROW - 6}" rx="2" fill="{color}"/>'
        f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="#0f172a"/>'
        f'<text class="small" x="{most + 6:.1f}" y="{middle + 4}">{spread.median:.1f}</text>'
    )
