"""What is kept of a visitor between two requests: the numbers of their decision and case, and nothing that they sent."""

from typing import Any

from gradio import Blocks
from gradio.state_holder import SessionState, StateHolder

MAX_SESSIONS = 1000  # the callers name them; whose session was dropped judges, or enters, again


class Session(SessionState):
    """One visitor's, without the last value of every field, which Gradio keeps for links to a page as it was filled in."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Sessions(StateHolder):
    """The latest visitors' sessions."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.set_blocks(blocks)
        self.capacity = MAX_SESSIONS

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)
