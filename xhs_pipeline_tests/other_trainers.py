"""Run by the Python of an environment that holds LLaMA-Factory 0.9.5 or ms-swift 4.6, and not this project.

    python other_trainers.py llamafactory|ms-swift COUNT|ARGUMENTS|TRAIN FOLDER RESULT.json [overrides ...]

FOLDER is a sharegpt_splits folder. COUNT loads each split with the trainer's own loader and template, and counts rows,
images and tokens with loss; ARGUMENTS has the trainer's own parser read the exported configuration; TRAIN runs it.

The published torchvision and torchaudio cannot be imported beside a CPU build of torch (their compiled parts need CUDA's
libraries): there, the operators whose absence stops the import are declared, and torchaudio is an empty module. Neither
trainer calls them for a Qwen2-VL.
"""

import importlib.machinery
import json
import os
import resource
import shlex
import sys
import time
import types
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "calibration", "test")


def import_without_cuda() -> Any:
    """What must live as long as the process, or None where torch has CUDA and nothing is amiss."""
    import torch

    if torch.version.cuda is not None:
        return None
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def llamafactory_count(overrides: list[str]) -> dict[str, Any]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    counts = {}
    for split in SPLITS:
        arguments = llamafactory_settings(overrides) | {"dataset": f"xhs_{split}", "overwrite_cache": True}
        model_args, data_args, training_args, _, _ = get_train_args(arguments)
        tokenizer_module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
        rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)[
            "train_dataset"
        ]
        counts[split] = count(rows["labels"], rows["images"] if "images" in rows.column_names else [])
    return counts


def llamafactory_settings(overrides: list[str]) -> dict[str, Any]:
    import yaml

    settings = yaml.safe_load(Path("llamafactory.yaml").read_text(encoding="utf-8"))
    return settings | {name: yaml.safe_load(value) for name, _, value in (o.partition("=") for o in overrides)}


def llamafactory_arguments(overrides: list[str]) -> dict[str, Any]:
    from llamafactory.hparams import get_train_args

    settings = llamafactory_settings(overrides)
    parsed: dict[str, Any] = {}
    for group in get_train_args(dict(settings)):  # raises ValueError for a key that none of them knows
        parsed |= {name: getattr(group, name) for name in settings if hasattr(group, name)}
    return {name: parsed[name] for name in settings}


def llamafactory_train(overrides: list[str]) -> dict[str, Any]:
    from llamafactory.train.tuner import run_exp

    took = clock_training()
    run_exp(llamafactory_settings(overrides))
    return dict(took)


def swift_words(overrides: list[str]) -> list[str]:
    script = Path("ms-swift.sh").read_text(encoding="utf-8")
    command = script[script.index("swift sft") :].replace("\\\n", " ").replace('"$@"', "")
    return shlex.split(os.path.expandvars(command.replace("${MODEL:-base_model}", "base_model")))[2:] + overrides


def swift_pixels() -> None:
    """The script's environment, as its shell would set it."""
    for word in Path("ms-swift.sh").read_text(encoding="utf-8").split():
        if word.startswith(("MIN_PIXELS=", "MAX_PIXELS=")):
            name, _, value = word.partition("=")
            os.environ[name] = value


def swift_count(overrides: list[str]) -> dict[str, Any]:
    from swift.pipelines.train.sft import SwiftSft

    counts = {}
    for split in SPLITS:
        pipeline = SwiftSft([*swift_words(overrides), "--dataset", f"{split}.parquet"])
        train, _ = pipeline._get_dataset()
        counts[split] = count(*labels_and_images(pipeline, train))
    return counts


def labels_and_images(pipeline: Any, rows: Any) -> tuple[list[Any], list[Any]]:
    encoded = [pipeline.template.encode(row) for row in rows]
    return [row["labels"] for row in encoded], [row["images"] for row in rows]


def swift_arguments(overrides: list[str]) -> dict[str, Any]:
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    words = swift_words(overrides)
    parsed, unknown = parse_args(SftArguments, words)
    assert not unknown, unknown
    return {word[2:]: str(getattr(parsed, word[2:])) for word in words if word.startswith("--")}


def swift_train(overrides: list[str]) -> dict[str, Any]:
    from swift.pipelines.train.sft import sft_main

    took = clock_training()
    sft_main(swift_words(overrides))
    return dict(took)


def clock_training() -> dict[str, float]:
    """From now on transformers.Trainer.train, which both trainers and we end up in, notes what it took, here."""
    from transformers import Trainer

    took: dict[str, float] = {}
    train = Trainer.train

    def clocked(self: Any, *args: Any, **kwargs: Any) -> Any:
        cpu, wall = used(), time.monotonic()
        done = train(self, *args, **kwargs)
        took.update(train_cpu_seconds=used() - cpu, train_wall_seconds=time.monotonic() - wall)
        return done

    Trainer.train = clocked
    return took


def used() -> float:
    """CPU seconds of this process and of the workers that it has waited for."""
    return sum(
        resource.getrusage(who)[0] + resource.getrusage(who)[1]
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def count(labels: list[Any], images: list[Any]) -> dict[str, int]:
    answers = sum(token != -100 for row in labels for token in row)
    return {"rows": len(labels), "images": sum(len(row or []) for row in images), "answer_tokens": answers}


def main() -> None:
    trainer, what, folder, result, *overrides = sys.argv[1:]
    result = os.path.abspath(result)
    os.chdir(folder)
    library = import_without_cuda()
    swift_pixels()
    actions = {
        "llamafactory": {"count": llamafactory_count, "arguments": llamafactory_arguments, "train": llamafactory_train},
        "ms-swift": {"count": swift_count, "arguments": swift_arguments, "train": swift_train},
    }
    found = actions[trainer][what](overrides)
    del library
    Path(result).write_text(json.dumps(found, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
