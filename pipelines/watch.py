"""Live progress of an execution: the API asked every so often, until it has ended."""

import time

from pipelines import terminal
from pipelines.execution import ENDED, Execution, Step

LOCAL_PAUSE, AWS_PAUSE = 0.3, 5.0  # seconds between two looks; on AWS each of them is several calls


def watch(execution: Execution) -> tuple[str, str, list[Step]]:
    """Show the steps until the execution has ended.

    Returns:
        Its status, its failure reason, and its steps.
    """
    pause = LOCAL_PAUSE if execution.place.local else AWS_PAUSE
    with terminal.board() as board:
        while True:
            state = execution.describe()  # before the steps: they are then at least as new
            steps = execution.steps()
            ended = state["PipelineExecutionStatus"] in ENDED
            board.show(steps, ended)
            if ended:
                return state["PipelineExecutionStatus"], " ".join(state.get("FailureReason", "").split()), steps
            time.sleep(pause)
