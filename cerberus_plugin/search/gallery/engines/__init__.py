"""Search engines: FAISS in the memory of this process, and Milvus for larger galleries.

`Faiss` and `Milvus` are configurations; an index calls them with its `Space` to create the engine. Any function that
takes a `Space` and returns an `Engine` can be used instead.
"""

from .base import Engine, MakeEngine, Space, padded, recall, synchronise
from .faiss_engine import FORMS, Faiss, FaissEngine
from .milvus_engine import Milvus, MilvusEngine

__all__ = ["FORMS", "Engine", "Faiss", "FaissEngine", "MakeEngine", "Milvus", "MilvusEngine", "Space", "padded",
           "recall", "synchronise"]
