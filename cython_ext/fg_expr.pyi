from collections.abc import Sequence

Instruction = tuple[str, int, tuple[int, ...], int, int]
ProgramSpec = tuple[
    Sequence[Instruction], Sequence[float], int, int, Sequence[Sequence[int]], int, bool
]

MAX_REGISTER_COUNT: int

class Expression:
    def __init__(self, spec: ProgramSpec) -> None: ...
    def scalar(self, x: float) -> float: ...
    def evaluate(
        self, variables: Sequence[Sequence[Sequence[float]]], fill: float = ...
    ) -> list[list[float]]: ...
