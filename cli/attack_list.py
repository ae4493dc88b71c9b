"""``fedquilt attack list``: every attack, what it touches, what it wants and what it must know."""

from __future__ import annotations

from cli.options import Json, new_table, print_json, print_table


def list_attacks(as_json: Json = False) -> None:
    """List the attacks with what they declare."""
    from cli.attack_options import require_attacks

    require_attacks()
    from client.attacks.contract import KNOWLEDGE, describe

    rows = describe()
    if as_json:
        print_json({"attacks": rows, "knowledge": KNOWLEDGE})
        return
    table = new_table("Attacks", "attack", "kind", "goal", "knows")
    for column in table.columns[1:]:
        column.justify = "left"
    for row in rows:
        table.add_row(row["attack"], row["kind"], row["goal"], row["knows"])
    print_table(table)
