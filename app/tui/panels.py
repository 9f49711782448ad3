"""The panels of the application: which one a message opens, and what follows from its result.

Each panel is imported when it is first opened, so that the first picture does not wait for it.
"""

from functools import partial
from typing import Any

from textual import on
from textual.app import App

from dslite.app.chat.controller import ChatController
from dslite.app.chat.launch import ChatLaunch
from dslite.app.tui import messages
from dslite.app.tui.screens.chat import ChatScreen
from dslite.model.errors import DsliteError
from dslite.runtime.events import Candidate


class PanelApp(App[int]):
    """An application with the chat's screen, above which panels are opened."""

    launch: ChatLaunch
    chat: ChatScreen

    @property
    def controller(self) -> ChatController:
        return self.chat.controller

    @on(messages.ToggleInspector)
    def _toggle_inspector(self) -> None:
        self.chat.toggle_inspector()

    @on(messages.ShowHelp)
    def _show_help(self) -> None:
        from dslite.app.tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.launch.config.keymap))

    @on(messages.ShowSessions)
    def _show_sessions(self) -> None:
        from dslite.app.tui.screens.sessions import SessionChoice, SessionsPanel

        def opened(choice: SessionChoice | None) -> None:
            if choice is not None:
                self.controller.load(lambda _: choice.id, message=choice.message, then=partial(found, choice))

        def found(choice: SessionChoice) -> None:
            if choice.words:
                self.chat.find_hit(choice.words, self.controller.tree.key_of(choice.message))

        self.push_screen(SessionsPanel(self.controller), opened)

    @on(messages.ShowProfiles)
    def _show_profiles(self) -> None:
        from dslite.app.tui.screens.profiles import ProfilesScreen

        def chosen(name: str | None) -> None:
            if name:
                self.chat.commands.run("profile", name)

        controller = self.controller
        self.push_screen(ProfilesScreen(controller.settings.profile.name, controller.removed_profiles), chosen)

    @on(messages.AskOverflowChoice)
    def _ask_overflow_choice(self, event: messages.AskOverflowChoice) -> None:
        from dslite.app.tui.screens.dialogs import ContextOverflowDialog

        def chosen(choice: Any) -> None:
            if choice == "edit":
                self.controller.choose_overflow(None)
                self.chat.commands.attempt(self.controller.edit)
            else:
                self.controller.choose_overflow(choice)

        self.push_screen(ContextOverflowDialog(event.error), chosen)

    @on(messages.ShowComparison)
    def _show_comparison(self, event: messages.ShowComparison) -> None:
        from dslite.app.tui.screens.compare import CompareScreen

        def chosen(place: int | None) -> None:
            if place is None:
                event.comparison.leave()
            else:
                event.comparison.choose(place)

        self.push_screen(CompareScreen(self.controller, event.comparison), chosen)

    @on(messages.ShowScores)
    def _show_scores(self, event: messages.ShowScores) -> None:
        from dslite.app.tui.screens.token_view import TokenView

        def chosen(choice: tuple[int, Candidate] | None) -> None:
            if choice is not None:
                self.chat.commands.attempt(lambda: self.controller.branch_at(event.answer, *choice))

        self.push_screen(TokenView(event.answer), chosen)

    @on(messages.Confirm)
    def _confirm(self, event: messages.Confirm) -> None:
        from dslite.app.tui.screens.dialogs import ConfirmDialog

        def answered(yes: bool | None) -> None:
            if yes:
                self.chat.commands.attempt(event.then)

        self.push_screen(ConfirmDialog(event.question), answered)

    @on(messages.OfferModel)
    def _offer_model(self, event: messages.OfferModel) -> None:
        from dslite.app.tui.screens.first_run import FirstRunScreen

        def chosen(model: str | None) -> None:
            if model:
                self.chat.commands.run("model", model)
            else:
                ways = f"/model {event.ref.name} shows the choices again, /model demo takes the demo model"
                self.chat.view.error(DsliteError(event.error.message, ways))

        if not isinstance(self.screen, FirstRunScreen):
            self.push_screen(FirstRunScreen(event.ref, event.error, self.launch.first_run), chosen)
