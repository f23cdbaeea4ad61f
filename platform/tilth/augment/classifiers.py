"""The classifiers that the label gate asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tilth.data.batching import in_batches
from tilth.data.embeddings import BATCH_TOKENS, Embedder
from tilth.data.positions import positions
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.data.transform import Fitted

Matrix = np.ndarray[Any, np.dtype[np.float32]]
FOLDS = 3
#: inverse strength of the L2 penalty. Vectors have unit length, so scikit-learn's 1.0 is too strong: of banking77's
#: test rows it gives 73 % at least 0.5 for their own label, 30 gives 91 % (accuracy 0.908 and 0.931)
INVERSE_PENALTY = 30.0
#: tokens that are read of a text where neither the model nor its tokenizer says how many fit
UNTOLD = 512


class Classifier(Protocol):
    """Labels in the order of its columns, and their probabilities."""

    labels: list[str]

    def probabilities(self, texts: Sequence[str]) -> Matrix:
        """(n, labels), each row summing to 1."""


def fit(vectors: Matrix, labels: Sequence[str], min_probability: float) -> Fitted:
    """Multinomial logistic regression of labels on unit vectors (n, d), as plain arrays.

    labels (c,), weights (c, d), bias (c,); accuracy and passing (scalars), both cross-validated on the labels that
    have a row for each fold: the share of held-out rows that are predicted right, and that give their own label at
    least `min_probability`. StageError with fewer than two such labels.
    """
    names, own, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    common = counts >= FOLDS
    if common.sum() < 2:
        raise StageError(
            f"label: {common.sum()} of {len(names)} labels have {FOLDS} originals in the train split, a classifier "
            "needs two such labels; load the data with row_type labelled, or name a classifier as `model`"
        )
    model = _regression().fit(vectors, own)
    weights, bias = model.coef_, model.intercept_
    if len(names) == 2:  # scikit-learn keeps one row for two labels: the second's log-odds
        weights, bias = np.vstack([np.zeros_like(weights), weights]), np.concatenate([[0.0], bias])
    arrays = {"labels": names, "weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    return {**arrays, **_held_out(vectors[common[own]], names[own[common[own]]], min_probability)}


def _held_out(vectors: Matrix, labels: np.ndarray[Any, Any], min_probability: float) -> Fitted:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found = cross_val_predict(_regression(), vectors, labels, cv=folds, method="predict_proba")
    own = np.unique(labels, return_inverse=True)[1]
    passing = found[np.arange(len(own)), own] >= min_probability
    return {"accuracy": np.asarray((found.argmax(1) == own).mean()), "passing": np.asarray(passing.mean())}


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)


class Linear:
    """The fitted logistic regression on embeddings."""

    def __init__(self, embedder: Embedder, fitted: Fitted) -> None:
        self.embedder, self.fitted = embedder, fitted
        self.labels: list[str] = fitted["labels"].tolist()

    def probabilities(self, texts: Sequence[str]) -> Matrix:
        return _softmax(self.embedder.encode(texts) @ self.fitted["weights"].T + self.fitted["bias"])


class SequenceClassifier:
    """A transformers model with a classification head; its config names the labels (`id2label`)."""

    def __init__(self, folder: Path, batch_tokens: int | None) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
        self.model = model.to(self.device).eval()
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device]
        names: dict[int, str] = model.config.id2label
        self.labels: list[str] = [names[index] for index in range(len(names))]

    def probabilities(self, texts: Sequence[str]) -> Matrix:
        limit = min(self.tokenizer.model_max_length, positions(self.model.config) or UNTOLD)
        tokens = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        rows = in_batches(tokens, self._forward, size=self.batch_tokens, length=len)
        return _softmax(np.asarray(rows, np.float32).reshape(len(texts), len(self.labels)))

    def _forward(self, tokens: list[list[int]]) -> Sequence[Matrix]:
        import torch

        padded = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits: Sequence[Matrix] = self.model(**padded).logits.float().cpu().numpy()
        return logits


def _softmax(logits: Matrix) -> Matrix:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    shares: Matrix = raised / raised.sum(axis=1, keepdims=True)
    return shares
