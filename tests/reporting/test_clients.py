"""The picture of clients: its bars are the examples of each label."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from research.data.clients import Clients
from research.errors import UserError
from research.reporting import client_labels, client_table


def clients(count: int, classes: int, examples: int = 3000) -> Clients:
    random = np.random.RandomState(0)
    owners = random.randint(0, count, examples)
    owners[:count] = np.arange(count)
    names = tuple(f"c{client}" for client in range(count))
    return Clients.of(owners, random.randint(0, classes, examples), classes, names)


def test_rows_of_few_clients(tmp_path):
    made = clients(4, 3)
    figure = client_labels(made, tmp_path / "clients.svg", ("cat", "dog", "bird"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().texts] == ["cat", "dog", "bird"]
    for label, bars in enumerate(axes.containers):
        assert [bar.get_width() for bar in bars] == made.histogram[:, label].tolist()
        starts = made.histogram[:, :label].sum(axis=1)
        assert [bar.get_x() for bar in bars] == starts.tolist()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["c0", "c1", "c2", "c3"]
    assert "4 clients" in axes.get_title("left")
    assert f"heterogeneity {made.heterogeneity:.2f}" in axes.get_title("left")
    # From what a run folder keeps, the same picture.
    client_labels(
        json.loads(json.dumps(made.to_json())), tmp_path / "again.svg", ("cat", "dog", "bird")
    )
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "clients.svg").read_bytes()


def test_columns_of_many_clients_with_rare_labels_together():
    made = clients(1000, 14, 20_000)
    axes = client_labels(made).axes[0]
    assert axes.get_xlabel() == "120 of 1,000 clients, by size"
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    assert heights.shape == (11, 120)  # ten labels and the others
    sizes = heights.sum(axis=0)
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] == made.sizes.max() and sizes[-1] == made.sizes.min()
    frequent = np.sort(np.argsort(-made.histogram.sum(axis=0))[:10])
    named = [text.get_text() for text in axes.get_legend().texts]
    assert named == [*map(str, frequent), "other"]


def test_a_table_of_clients():
    made = Clients.of(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2, ("a", "b"))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(client_table(made))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["a", "3", "2", "0", "67%", "0.17"] in lines
    assert ["b", "1", "1", "1", "100%", "0.50"] in lines
    table = client_table(clients(500, 3))
    assert table.row_count == 20


def test_what_cannot_be_shown():
    with pytest.raises(UserError, match="there is no client"):
        client_labels(Clients.of(np.zeros(0, int), np.zeros(0, int), 2, ()))
    with pytest.raises(UserError, match="2 names were given for 3 labels"):
        client_labels(clients(4, 3), labels=("cat", "dog"))
