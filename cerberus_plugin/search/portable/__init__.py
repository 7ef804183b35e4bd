"""Inference with exported models without torch and FastReID; needs numpy and Pillow, and onnxruntime for encoding."""

from ...attributes.attribute_model import Answer as Answer
from ...attributes.attribute_model import AttributeModel as AttributeModel
from ...attributes.attribute_model import Vocabulary as Vocabulary
from ...utils.images import Limits as Limits
from ...utils.images import Unreadable as Unreadable
from ...utils.images import read_image as read_image
from .encoder import Encoder as Encoder
from .exported import ExportedEncoder as ExportedEncoder
from .verification import Verification as Verification
