"""Find labels of own data that are probably wrong, and identities that are mixed up."""

from .auditing import Audit as Audit
from .auditing import audit as audit
from .auditing import text as text
