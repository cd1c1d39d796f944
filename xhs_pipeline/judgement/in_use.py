"""Which model judges and how its scores become decisions: the champion of a data folder, and the calibration of its report.

For whoever uses a model outside the pipeline. Loads no weights and moves no pointer.
"""

from pathlib import Path

from xhs_pipeline.artifacts import read_json
from xhs_pipeline.judgement.calibration import CALIBRATION, Calibration
from xhs_pipeline.judgement.champion import POINTER, Champion, model_folder, read_champion

RELEASES, REPORTS, MANIFEST = "released_model", "evaluation_report", "manifest.json"


def champion_of(data: Path) -> Path:
    """The folder of the model in use in a data folder (`XHS_DATA_DIR`).

    Raises ValueError when none is in use yet, or when the pointer cannot be read.
    """
    releases = data / RELEASES
    champion = read_champion(releases)
    if champion is None:
        raise ValueError(
            f"{releases / POINTER}: missing, so no model is in use; materialise released_model, or name a model's folder"
        )
    return model_folder(releases, champion)


def calibration_of(model: Path) -> Calibration | None:
    """The calibration that a model folder was released with; None for a model that is not in use, or never was calibrated.

    Looked for where `model` is <data>/merged_model/<version> and the champion of <data>: in the report it was released on.
    Raises ValueError when the pointer or the report's calibration.json is there and cannot be read.
    """
    data = model.absolute().parent.parent
    champion = read_champion(data / RELEASES)
    if champion is None or model_folder(data / RELEASES, champion).absolute() != model.absolute():
        return None
    return released_calibration(data, champion)


def released_calibration(data: Path, champion: Champion) -> Calibration | None:
    """The calibration in the report that `champion` was released on, None without one. Raises ValueError as above."""
    return calibration_in(data / REPORTS / champion.report_version)


def calibration_in(report: Path) -> Calibration | None:
    """The calibration in a report's folder, None without one. Raises ValueError when it is there and cannot be read."""
    file = report / CALIBRATION
    return read_calibration(file) if file.exists() else None


def read_calibration(file: Path) -> Calibration:
    """Read a calibration.json. Raises ValueError naming the file and all faults in it, OSError when it cannot be opened."""
    try:
        stored = read_json(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file}: not JSON ({error}); expected what evaluation_report wrote") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{file}: holds a {type(stored).__name__}, expected the entries that evaluation_report wrote")
    return Calibration.from_dict(stored, str(file))


def version_of(model: Path) -> str:
    """A model folder's version: what its manifest.json says, else the folder's name."""
    manifest = model / MANIFEST
    return str(read_json(manifest)["version"]) if manifest.is_file() else model.absolute().name
