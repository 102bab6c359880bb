"""Recurrence -> Program, one file per form. The tuple is the whole mechanism: a form is listed here and nowhere else."""

from seqc.forms.base import Applies, Form, Lowered, Refuses
from seqc.forms.chunkwise import CHUNKWISE
from seqc.forms.conv import CONV
from seqc.forms.newton import NEWTON
from seqc.forms.recurrent import RECURRENT
from seqc.forms.scan import SCAN

FORMS: tuple[Form, ...] = (CHUNKWISE, CONV, SCAN, NEWTON, RECURRENT)

__all__ = ["FORMS", "Applies", "Form", "Lowered", "Refuses"]
