"""The command line: `python pipelines/run.py [--local] VERB`. With --local everything happens on this machine.

    run.py --local run --config configs/demo.yaml --data sample/digits     the whole pipeline, here
    run.py upsert --config configs/dogbreed.yaml --data s3://…/dogImages    create it on AWS; start it from Studio
    run.py predict photo.jpg                                                ask the endpoint

Exit codes: 0 it worked, 1 the execution failed, 2 something to correct, 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

_GLOBAL = (
    ("--local", "on this machine: no AWS, no network"),
    ("--json", "answer in JSON, for machines; progress goes to stderr"),
)


def parser() -> argparse.ArgumentParser:
    """Verbs and their options."""
    top = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    anywhere = argparse.ArgumentParser(add_help=False)  # --local and --json, before the verb or after it
    for name, text in _GLOBAL:
        top.add_argument(name, action="store_true", help=text)
        anywhere.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=text)
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", metavar="FILE", help="settings, e.g. configs/dogbreed.yaml; defaults without it")
    config.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], help="override one; repeatable")
    build = argparse.ArgumentParser(add_help=False)
    build.add_argument("--data", metavar="DIR_OR_S3", help="photos in class folders")
    build.add_argument("--weights", metavar="NAME_OR_FILE", help="IMAGENET1K_V1, a file *.pth, s3://…, or random")
    begin = argparse.ArgumentParser(add_help=False)
    begin.add_argument("-p", "--parameter", metavar="NAME=VALUE", action="append", default=[],
                       help="a pipeline parameter, e.g. Epochs=30; repeatable")  # fmt: skip

    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[anywhere, *parents], allow_abbrev=False)

    verb("definition", "print the pipeline's definition; needs no AWS", config, build)
    verb("upsert", "stage code, weights and data, and create or update the pipeline", config, build)
    each = verb("start", "start an execution of the pipeline", config, begin)
    each.add_argument("--wait", action="store_true", help="watch it to its end")
    verb("run", "upsert, start and watch", config, build, begin)
    each = verb("status", "the steps of an execution", config)
    each.add_argument("execution", nargs="?", metavar="EXECUTION", help="its ARN or id; the newest if not given")
    verb("list", "the executions there are", config)
    each = verb("logs", "the log of a step", config)
    each.add_argument("step", metavar="STEP", help="e.g. Train")
    each.add_argument("execution", nargs="?", metavar="EXECUTION", help="its ARN or id; the newest if not given")
    each = verb("stop", "stop an execution", config)
    each.add_argument("execution", nargs="?", metavar="EXECUTION", help="its ARN or id; the newest if not given")
    each = verb("predict", "ask the endpoint about photos", config)
    each.add_argument("images", nargs="+", metavar="IMAGE")
    each.add_argument("--endpoint", metavar="NAME", help="the config's if not given; locally the newest")
    each = verb("upload", "bring a folder of photos to S3, under a prefix named after its content", config)
    each.add_argument("directory", metavar="DIR")
    each = verb("sample", "write the sample dataset: handwritten digits")
    each.add_argument("directory", metavar="DIR")
    verb("down", "stop SageMaker on this machine; what it keeps stays")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say; the exit code."""
    options = parser().parse_args(arguments)
    from pipelines.errors import UserError

    try:
        from pipelines.commands import VERBS

        return VERBS[options.verb](options)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if not type(error).__module__.startswith("botocore"):
            raise  # ours: with its traceback
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
