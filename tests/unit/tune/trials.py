"""Trials whose numbers a person can follow."""

from caption_ray.tune.records import Status, TrialRecord
from caption_ray.tune.space import SearchSpace, Value

SPACE = SearchSpace(
    embedding_size=(100, 200, 400),
    hidden_size=(256,),
    attention_size=(64, 128),
    learning_rate=(1e-4, 1e-2),
    dropout=(0.2, 0.6),
    batch_size=(80,),
    label_smoothing=(0.0, 0.0),
)


def settings(**changes: Value) -> dict[str, Value]:
    """Return a trial's settings within SPACE, by their short names."""
    return {
        "model.embedding_size": changes.get("embedding", 200),
        "model.hidden_size": 256,
        "model.attention_size": changes.get("attention", 64),
        "optimizer.learning_rate": changes.get("rate", 1e-3),
        "model.dropout": changes.get("dropout", 0.4),
        "training.batch_size": 80,
        "training.label_smoothing": 0.0,
    }


def trial(number: int, *scores: float, status: Status = "finished", **changes: Value) -> TrialRecord:
    """Return a trial with a CIDEr after each epoch; BLEU-4 is a third of it."""
    epochs = tuple({"epoch": float(at), "cider": score, "bleu_4": score / 3} for at, score in enumerate(scores, 1))
    error = "the gradient is not finite" if status == "failed" else None
    return TrialRecord(number=number, settings=settings(**changes), status=status, epochs=epochs, error=error)


TRIALS = (
    trial(1, 0.10, 0.20, 0.30, 0.28),
    trial(2, 0.15, 0.26, 0.36, 0.40, rate=2e-3),
    trial(3, 0.05, 0.06, status="stopped", rate=1e-2, embedding=400),
    trial(4, status="failed", rate=1e-2, attention=128),
    trial(5, 0.12, status="stopped", dropout=0.6),
    trial(6, 0.14, 0.41, status="running", dropout=0.3),
)
