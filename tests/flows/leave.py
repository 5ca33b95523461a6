"""The people at a simulated device, who do not permit every activation at once."""

from random import Random

REFUSALS, MAX_REFUSALS = 0.4, 5  # chance that nobody permits an activation, and how often in a row


class Leave:
    """Whether assignments of one device may be activated."""

    def __init__(self, device: str) -> None:
        self._asked: dict[str, int] = {}  # assignment -> how often it asked
        self._mood = Random(device)  # of its own, so that the rest of the world stays as it is
        self.held: set[str] = set()  # assignments that nobody permits now

    def refuses(self, assignment_id: str) -> bool:
        """Tell whether nobody permits an activation; after a few times somebody does."""
        times = self._asked.get(assignment_id, 0)
        self._asked[assignment_id] = times + 1
        refuses = times < MAX_REFUSALS and self._mood.random() < REFUSALS
        (self.held.add if refuses else self.held.discard)(assignment_id)
        return refuses

    def kind(self) -> str:
        """What is waited for."""
        return self._mood.choice(["window", "consent"])

    def patience(self) -> float:
        """Seconds until it is asked again."""
        return 2 + 10 * self._mood.random()
