"""Use of an exported model without torch and without FastReID: numpy and Pillow, and onnxruntime where it encodes."""

from ...attributes.attribute_model import Answer as Answer
from ...attributes.attribute_model import AttributeModel as AttributeModel
from ...attributes.attribute_model import Vocabulary as Vocabulary
from ...utils.images import Limits as Limits
from ...utils.images import Unreadable as Unreadable
from ...utils.images import read_image as read_image
from .encoder import Encoder as Encoder
from .exported import ExportedEncoder as ExportedEncoder
from .verification import Verification as Verification
