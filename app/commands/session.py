"""`dslite session`: saved conversations."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import completion_values as complete
from dslite.app.commands.command import command, flag
from dslite.app.commands.flags import ExportFlags, ListFlags
from dslite.runtime.engine_options import check_whole
from dslite.runtime.errors import UsageError

if TYPE_CHECKING:
    from dslite.app.sessions.store import Conversation

app = typer.Typer(help="List, read, search, rename, export, import and remove conversations.", no_args_is_help=True)

Id = Annotated[
    str,
    typer.Argument(metavar="ID", help="The conversation's id, or how it begins.", autocompletion=complete.sessions),
]
Limit = Annotated[int | None, flag("--limit", "-n", help="Most conversations; default: all.")]
_MOST = 2**31 - 1


def list_sessions(*, limit: Limit = None, listing: ListFlags) -> None:
    """List the conversations, the last changed first."""
    from dslite.app.sessions.export import local_time
    from dslite.app.sessions.store import SessionStore
    from dslite.app.terminal.tables import print_table

    check_whole("--limit", limit, 1, _MOST)
    with SessionStore.open() as store:
        found = store.conversations(limit=limit)
    if listing.json:
        print(json.dumps([_summary(each) for each in found]))
        return
    rows = [(each.id, local_time(each.updated), f"{each.messages}", each.title) for each in found]
    print_table(("ID", "CHANGED", "MESSAGES", "TITLE"), rows)


def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT", help="Words that one message, or the title, has.")],
    *,
    limit: Annotated[int, flag("--limit", "-n", help="Most conversations.")] = 50,
    listing: ListFlags,
) -> None:
    """Find conversations by what is said in them."""
    from dslite.app.sessions.export import local_time
    from dslite.app.sessions.store import SessionStore
    from dslite.app.terminal.tables import print_table

    check_whole("--limit", limit, 1, _MOST)
    if not "".join(text).strip():
        raise UsageError("TEXT is empty: there is nothing to search for", "give a word of a message or a title")
    with SessionStore.open() as store:
        hits = store.search(" ".join(text), limit=limit)
    if listing.json:
        keys = ("id", "title", "updated", "message", "snippet")
        print(json.dumps([{key: getattr(hit, key) for key in keys} for hit in hits]))
        return
    rows = [(hit.id, local_time(hit.updated), hit.title, "" if hit.message is None else hit.snippet) for hit in hits]
    print_table(("ID", "CHANGED", "TITLE", "TEXT"), rows)


def show(id: Id, *, listing: ListFlags) -> None:
    """Print a conversation: its active branch, or with -o json all of it."""
    from dslite.app.terminal.console import visible

    print(visible(_exported(id, "json" if listing.json else "md")), end="")


def export(
    id: Id,
    *,
    form: ExportFlags,
) -> None:
    """Export a conversation as Markdown, or as JSON that `import` takes."""
    from dslite.app.terminal.console import visible
    from dslite.app.terminal.output_file import open_output

    text = _exported(id, form.format)
    with open_output(form.output_file) as file:
        file.write(visible(text) if form.output_file is None else text)


def rename(id: Id, title: Annotated[list[str], typer.Argument(metavar="TITLE", help="The new title.")]) -> None:
    """Give a conversation another title."""
    from dslite.app.sessions.store import SessionStore

    name = " ".join(" ".join(title).split())
    if not name:
        raise UsageError("the title is empty")
    with SessionStore.open() as store:
        store.rename(store.find(id).id, name)


def import_files(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The files; - is stdin.")],
) -> None:
    """Import conversations: an export of dslite, or ChatGPT's as a ZIP or as conversations.json.

    What is not sound is named and left out; where nothing is left, that is an error.
    """
    from dslite.app.sessions.importer import MAX_BYTES, import_file, import_path
    from dslite.app.sessions.store import SessionStore
    from dslite.app.terminal import console, streams
    from dslite.app.terminal.tables import print_table

    rows: list[tuple[str, str]] = []
    skipped = 0
    with SessionStore.open() as store:
        for file in files:
            if file == "-":
                result = import_file(store, streams.read_stdin(most=lambda: MAX_BYTES), "stdin")
            else:
                result = import_path(store, file)
            rows += [(conversation.id, conversation.title) for conversation in result.imported]
            skipped += len(result.skipped)
            for fault in result.skipped:
                console.warn(f"not imported: {fault}")
    if skipped and not rows:
        raise UsageError("nothing was imported", "import an export of dslite session export -o json, or ChatGPT's")
    print_table(("ID", "TITLE"), rows)


def remove(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids, or how they begin.", autocompletion=complete.sessions)
    ],
) -> None:
    """Remove conversations for good."""
    from dslite.app.sessions.store import SessionStore

    with SessionStore.open() as store:
        for conversation in [store.find(id) for id in ids]:  # all are found before one is removed
            store.purge(conversation.id)


def _summary(conversation: "Conversation") -> dict[str, Any]:
    keys = ("id", "title", "model", "profile", "created", "updated", "messages")
    return {key: getattr(conversation, key) for key in keys}


def _exported(id: str, kind: str) -> str:
    from dslite.app.sessions.export import to_dict, to_markdown
    from dslite.app.sessions.store import SessionStore

    with SessionStore.open() as store:
        conversation = store.find(id)
        if kind == "md":
            return to_markdown(conversation, store.path(conversation.leaf))
        return json.dumps(to_dict(conversation, store.tree(conversation.id))) + "\n"


app.command("list")(command(list_sessions))
app.command("search")(command(search))
app.command("show")(command(show))
app.command("rename")(command(rename))
app.command("export")(command(export))
app.command("import")(command(import_files))
app.command("rm")(command(remove))
