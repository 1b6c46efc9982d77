"""Work that is shared out: the same tasks here, over processes of this machine, or over a Dask cluster.

::

    with hire(Workers(jobs=2), Job(build, arguments, here), len(tasks)) as crew:
        for number, result in crew.run(tasks):
            ...

Whoever runs a task builds what runs tasks once, with ``build(*arguments)``, and keeps it. What is large
among the arguments stands in files (`Files`), which travel by their hash, once. A task gives the same result
wherever it runs; results come in any order, each with its number. A worker that dies is replaced and its task
tried again; a task that kills every worker is answered with `Died`. What a task raises is raised here.
"""

from onnxprune.workers.crew import Crew, Died, Job, hire
from onnxprune.workers.files import Files
from onnxprune.workers.host import measuring
from onnxprune.workers.setting import ALONE, Workers
from onnxprune.workers.tasks import Stopped, check_stop

__all__ = ["ALONE", "Crew", "Died", "Files", "Job", "Stopped", "Workers", "check_stop", "hire", "measuring"]
