"""Halve the time of Triton's interpreter: patch its language once per launch.

To interpret a kernel, Triton 3.7 replaces about 200 members of `triton.language`, and does so again
in every call of a device function, `tl.sum` and `tl.zeros` included. The second time changes
nothing, and takes longer than most of the functions.
"""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang


def _patch_lang_once(function: Any) -> Any:
    languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
    patched = not any(tl.core.is_builtin(language.program_id) for language in languages)
    return None if patched else _patch_lang(function)


def patch_language_once_per_launch() -> None:
    interpreter._patch_lang = _patch_lang_once
