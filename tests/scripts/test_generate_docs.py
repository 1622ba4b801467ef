"""Tables and failures in docs/ and sql/ match the program."""

from pathlib import Path

import pytest

from pipeline.output.schema import MASKS
from scripts import generate_docs


@pytest.mark.parametrize("path", sorted(generate_docs.documents()), ids=lambda path: path.name)
def test_the_documents_are_those_of_the_schemas(path: Path) -> None:
    assert path.read_text() == generate_docs.documents()[path], "run python -m scripts.generate_docs"


def test_every_column_is_listed_with_its_type_and_its_meaning() -> None:
    listed = generate_docs.column_list(MASKS).splitlines()[2:]
    assert [line.split("`")[1] for line in listed] == MASKS.names
    assert "| `image_id` | `fixed_size_binary[16]` | no | 16-byte BLAKE2b hash of image_uri |" in listed
    assert all(line.count("|") == 5 for line in listed), "a description broke the table"


@pytest.mark.parametrize("name", generate_docs.STATEMENTS)
def test_a_statement_ends_where_it_should(name: str) -> None:
    """Whoever splits the file at semicolons gets whole statements."""
    text = (generate_docs.ROOT / "sql" / f"{name}.sql").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    statements = [part.strip() for part in code.split(";") if part.strip()]
    assert all(part.startswith(("CREATE ", "SET ")) for part in statements)
    assert len(statements) >= 3
