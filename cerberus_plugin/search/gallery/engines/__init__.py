"""Search engines: FAISS in this process, Milvus for galleries that outgrow it."""

from .base import Engine, recall, synchronise
from .faiss_engine import FORMS, FaissEngine
from .milvus_engine import MilvusEngine

__all__ = ["FORMS", "Engine", "FaissEngine", "MilvusEngine", "recall", "synchronise"]
