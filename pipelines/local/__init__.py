"""SageMaker on this machine: one process on 127.0.0.1 that speaks SageMaker's API and runs its jobs as subprocesses.

Read in this order: `service` (start and stop it), `app` (what it answers to), `control` (the operations), `engine`
(runs a pipeline), `processing`, `training`, `tuning` and `hosting` (what a step becomes), `container` (a process in an
/opt/ml tree of its own), `store` and `objects` (what is kept).
"""
