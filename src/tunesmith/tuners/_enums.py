"""Add a member to an enumeration of strings that another library has closed.

Kept apart from everything that imports PEFT, so that one test can run this file alone on each Python that is here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["add_member"]


def add_member(kind: Any, name: str) -> Any:
    """Add the member ``name`` with the value ``name`` to ``kind``, a ``class X(str, Enum)``; return it.

    Afterwards ``kind(name)``, ``kind[name]``, ``kind.NAME``, iteration, ``copy``, ``pickle`` and dictionary look-up by
    the plain string find it. Idempotent. O(1).

    Raises:
        TypeError: ``kind`` keeps its members in another way than Python 3.11 to 3.14 do.
    """
    if name in kind.__members__:
        return kind[name]
    try:
        member: Any = str.__new__(kind, name)
        member._name_ = member._value_ = name
        member.__objclass__ = kind
        member._sort_order_ = len(kind._member_names_)
        kind._member_map_[name] = member
        kind._value2member_map_[name] = member
        kind._member_names_.append(name)
        # From Python 3.12 on a member is found as a plain class attribute; EnumType refuses to set one.
        type.__setattr__(kind, name, member)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"{kind.__name__} does not keep its members as enumerations of strings do: {error}"
        ) from error
    if kind(name) is not member or getattr(kind, name, None) is not member or list(kind)[-1] is not member:
        raise TypeError(f"{kind.__name__} has not taken the member {name}.")
    return member
