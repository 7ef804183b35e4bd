"""Search engines: FAISS in this process, Milvus for galleries that outgrow it.

`Faiss` and `Milvus` describe an engine and make it for the index that they are handed to. Any function that takes a
`Space` and returns an `Engine` can stand in their place.
"""

from .base import Engine, MakeEngine, Space, padded, recall, synchronise
from .faiss_engine import FORMS, Faiss, FaissEngine
from .milvus_engine import Milvus, MilvusEngine

__all__ = ["FORMS", "Engine", "Faiss", "FaissEngine", "MakeEngine", "Milvus", "MilvusEngine", "Space", "padded",
           "recall", "synchronise"]
