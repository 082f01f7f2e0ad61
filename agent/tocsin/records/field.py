"""What a field of the event schema is: the type of the rows in the generated field table.

The rows themselves stand in `field_table.py`, generated from proto/. Nothing
here knows any particular field.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Wire(IntEnum):
    """How a field stands on the wire. The numbers are shared with `evaluate/project.c`."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


class Presentation(IntEnum):
    """How a value is shown as text; tocsin.api.event.v1.Presentation, shared with `evaluate/project.c`.

    What each looks like to a rule is told in `evaluate/semantics.py`.
    """

    PLAIN = 0
    ARGV = 1
    IP = 2
    USER = 3
    PROTOCOL = 4
    INITIATED = 5
    HEX = 6
    FLAGS = 7
    PATH = 8
    ERRNO = 9
    ENUM = 10
    IPS = 11
    SIGNAL = 12


@dataclass(frozen=True, slots=True)
class Field:
    """A field that rules may name."""

    name: str
    """Name in Sigma's taxonomy: Image, ParentImage, DestinationPort."""
    path: tuple[int, ...]
    """Protobuf field numbers from Event down to the value: (6, 16) is process.exe."""
    event_type: int
    """EventType whose events carry it; 0: every type that has a process."""
    wire: Wire
    presentation: Presentation


_ERRORS: Final = """
success EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE
EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST
ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR
ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD
EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE
EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE
EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL
EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD
ENOTRECOVERABLE ERFKILL EHWPOISON
"""
ERROR_NAMES: Final = tuple("" if name == "-" else name for name in _ERRORS.split())
"""How each errno is shown, by number; empty where Linux has none (include/uapi/asm-generic/errno.h).

Written out, because libraries disagree on the name where two share a number.
"""
