"""The blocks that a profile is made of: frozen, closed to unknown keys, every default stated."""

from unlearn_lib.settings.book import (
    BookData,
    BookImplant,
    BookMethodSettings,
    BookSettings,
    Fault,
)
from unlearn_lib.settings.common import (
    EvaluationSettings,
    ExperimentSettings,
    ImplantSettings,
    LoraSettings,
    MethodSettings,
    ModelSettings,
    Precision,
    Settings,
)
from unlearn_lib.settings.harmful import ClassifierSettings, HarmfulData, HarmfulSettings
from unlearn_lib.settings.tofu import (
    SCENARIOS,
    PeopleData,
    Scenario,
    TofuData,
    TofuEvaluation,
    TofuImplant,
    TofuMethodSettings,
    TofuSettings,
)

__all__ = [
    "SCENARIOS",
    "BookData",
    "BookImplant",
    "BookMethodSettings",
    "BookSettings",
    "ClassifierSettings",
    "EvaluationSettings",
    "ExperimentSettings",
    "Fault",
    "HarmfulData",
    "HarmfulSettings",
    "ImplantSettings",
    "LoraSettings",
    "MethodSettings",
    "ModelSettings",
    "PeopleData",
    "Precision",
    "Scenario",
    "Settings",
    "TofuData",
    "TofuEvaluation",
    "TofuImplant",
    "TofuMethodSettings",
    "TofuSettings",
]
