"""`cost`: what runs cost, as tables on the terminal, and in cost.json of a run for its report.

instructgpt cost runs/demo --prices prices.yaml
"""

from __future__ import annotations

from collections.abc import Iterator

from instructgpt.report.cost import PriceList, RunCost, read_cost, write_cost
from instructgpt.report.section import ReportTable
from instructgpt.report.sections.cost import build_cost_tables
from instructgpt.run.configs import CostConfig
from instructgpt.run.directory import console


def main(config: CostConfig) -> RunCost:
    """Print the tables and return the cost.

    Raises:
        InputError: a directory holds no run, or prices or labels cannot be read.
    """
    prices = PriceList.read(config.prices) if config.prices else None
    cost = read_cost(config.run, config.labels, prices, config.watts)
    for table in build_cost_tables(cost):
        for line in (*format_lines(table), *(f"- {note}" for note in table.notes), ""):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if len(config.run) == 1:
        write_cost(config.run[0], cost)
    return cost


def format_lines(table: ReportTable) -> Iterator[str]:
    """Yield the lines of a report's table, as wide as its cells: a terminal may wrap them, and files keep them."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    yield table.title
    for row in rows:
        first, *numbers = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
