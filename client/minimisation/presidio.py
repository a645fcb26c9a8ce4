"""Presidio as a hook: ``minimise.hook = "grandrounds.client.minimisation.presidio:anonymise"``, for English texts."""

import functools
from typing import Any, Final

from ...common.errors import StudyError

_MODEL: Final = "en_core_web_lg"  # Presidio's own choice


def anonymise(texts: list[str]) -> list[str]:
    """The texts with what Presidio takes for names, places and the like replaced by its kind, as in <PERSON>.

    Raises StudyError where Presidio or its model is not installed: it is large, and no dependency of this package.
    """
    analyzer, anonymizer = _engines()
    return [anonymizer.anonymize(text, analyzer.analyze(text, language="en")).text for text in texts]


@functools.cache
def _engines() -> tuple[Any, Any]:
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_anonymizer import AnonymizerEngine

        if not spacy.util.is_package(_MODEL):  # Presidio would fetch it, and a worker has no network
            raise ImportError(_MODEL)
        return AnalyzerEngine(), AnonymizerEngine()
    except ImportError as error:
        raise StudyError(
            f"Presidio cannot be used ({type(error).__name__})",
            why="policy.toml names it as what takes names out of records (minimise.hook)",
            fix=f"pip install presidio-analyzer presidio-anonymizer && python -m spacy download {_MODEL}",
        ) from error
