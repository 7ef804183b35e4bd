"""Report of the studies and figures in a folder, as one HTML page and in Markdown."""

from .writing import claims as claims
from .writing import main as main
from .writing import section as section
from .writing import text as text
from .writing import write as write
