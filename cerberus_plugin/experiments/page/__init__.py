"""The report of a folder of studies and figures: one page in HTML and the same in Markdown."""

from .writing import claims as claims
from .writing import main as main
from .writing import section as section
from .writing import text as text
from .writing import write as write
